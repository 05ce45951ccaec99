"""What a teacher hears in a clip, as targets for a student: asked once and kept on disk, or asked during training."""

import hashlib
import inspect
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.numpy import save_file
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm
from transformers.utils import logging

from ..audio_htsat import AudioError, load_audio
from ..configuration_htsat import SPECTROGRAM_VALUES
from ..feature_extraction_htsat import HTSATFeatureExtractor
from ..hub_htsat import class_names
from ..modeling_htsat import multi_label_loss
from ..tables import write_whole
from ..whole_htsat import is_leftover, whole_file
from .clips import ClipRows

logger = logging.get_logger(__name__)

DESCRIPTION_FILE = "soft_targets.json"
CLIPS_PER_PART = 4096  # what an interruption costs at most; with AudioSet's 527 classes, 4 MB in float16
NUMBER_TYPES = ("float16", "float32")
SINGLE, SEVERAL = "single_label_classification", "multi_label_classification"
Waveform = np.ndarray


# ── the teacher ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Teacher:
    """A model that tags clips, ours or another of the Hub, with its feature extractor.

    Args:
        model: gives clip logits: [`HTSATForAudioClassification`], [`HTSATForSoundEventDetection`], an ensemble of
            them, transformers' `ASTForAudioClassification`, ... It is frozen, and put into evaluation mode.
        feature_extractor: the model's own.
        problem_type: how its logits become probabilities, where its configuration does not say or is wrong.
    """

    def __init__(self, model: Any, feature_extractor: Any, problem_type: str | None = None):
        self.model = model.eval().requires_grad_(False)
        self.feature_extractor = feature_extractor
        self.problem_type = _problem_type_of(model) if problem_type is None else problem_type
        if self.problem_type not in (SINGLE, SEVERAL):
            raise ValueError(
                f"The teacher's `problem_type` is {self.problem_type!r}, so its scores are not known to be "
                f"probabilities; pass `problem_type`: {SEVERAL!r} for a sigmoid, {SINGLE!r} for a softmax."
            )
        self.label_names = [model.config.id2label[index] for index in range(model.config.num_labels)]
        self.sampling_rate = int(feature_extractor.sampling_rate)

    def hear(self, waveforms: Sequence[Waveform]) -> torch.Tensor:
        """Probabilities `(clips, classes)` of waveforms at the teacher's rate."""
        # Some extractors make a batch of unequal clips only when they are told to; others do not know the word.
        padding = inspect.signature(self.feature_extractor.__call__).parameters.get("padding")
        options = {"padding": True} if padding is not None and padding.default is False else {}
        features = self.feature_extractor(
            list(waveforms), sampling_rate=self.sampling_rate, return_tensors="pt", **options
        )
        return self.judge(features)

    @torch.no_grad()
    def judge(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Probabilities `(clips, classes)`, in float32, of features that are ready."""
        device, dtype = self.model.device, self.model.dtype
        outputs = self.model(
            **{
                name: values.to(device, dtype) if values.is_floating_point() else values.to(device)
                for name, values in features.items()
            }
        )
        logits = outputs.get("clip_logits", outputs.logits).float()  # of a detector, the scores of the whole clip
        if logits.ndim != 2:
            raise ValueError(
                f"The teacher, a {type(self.model).__name__}, gives scores of shape {tuple(logits.shape)}; one for "
                "each clip and class is needed: (clips, classes)."
            )
        return logits.softmax(-1) if self.problem_type == SINGLE else logits.sigmoid()


def _problem_type_of(model: Any) -> str | None:
    said = model.config.problem_type
    # A detector's classes never exclude one another, whatever the configuration leaves open.
    return SEVERAL if said is None and "HTSATForSoundEventDetection" in class_names(model) else said


def _columns(label_names: Sequence[str], of_teacher: Sequence[str], who: str) -> list[int]:
    """Where each of our classes is among the teacher's."""
    index = {name: position for position, name in enumerate(of_teacher)}
    if unknown := [name for name in label_names if name not in index]:
        raise ValueError(
            f"{who} does not know the class {unknown[0]!r} ({len(unknown)} of {len(label_names)} are unknown to it); it"
            f" must know all of the student's classes by name. It knows {len(of_teacher)}, {of_teacher[0]!r} the first."
        )
    return [index[name] for name in label_names]


# ── asked once: soft targets on disk ──────────────────────────────────────────────────────────────────────────────────


def cache_soft_targets(
    teacher: Any,
    feature_extractor: Any,
    rows: ClipRows,
    path: str | os.PathLike[str],
    *,
    problem_type: str | None = None,
    number_type: str = "float16",
    batch_size: int = 8,
    num_workers: int = 0,
    clips_per_part: int = CLIPS_PER_PART,
) -> list[str]:
    """Ask a teacher about every clip, heard whole at its own rate, and keep its probabilities in a folder.

    The folder fills part by part; a call that is interrupted goes on where it stopped when it is made again. Returns
    the names of clips that cannot be decoded, which get NaN. Call it in one process alone.

    Args:
        teacher, feature_extractor, problem_type: see `Teacher`; move the model to its device before.
        number_type: "float16", exact to 0.0005, or "float32" for twice the space.
        num_workers: processes that decode while the teacher listens.
    """
    if number_type not in NUMBER_TYPES:
        raise ValueError(f"`number_type` is {number_type!r}; it must be {' or '.join(NUMBER_TYPES)}.")
    asked, folder = Teacher(teacher, feature_extractor, problem_type), Path(path)
    names = [row["video_id"] for row in rows.without_audio()]
    if len(set(names)) != len(names):
        raise ValueError("Two clips share a name; soft targets are found by it, so every clip needs its own.")
    description = {
        "num_clips": len(names),
        "clips_per_part": clips_per_part,
        "number_type": number_type,
        "clips": _digest(name.encode() for name in names),
        "teacher": _digest(_bytes_of(asked.model)),
        "problem_type": asked.problem_type,
        "label_names": asked.label_names,
    }
    _begin_or_go_on(folder, description)
    missing = [part for part in range(-(-len(names) // clips_per_part)) if not _part_path(folder, part).is_file()]
    done = len(names) - sum(min(clips_per_part, len(names) - part * clips_per_part) for part in missing)
    with tqdm(total=len(names), initial=done, unit="clip", desc="asking the teacher", disable=None) as bar:
        heard = _heard(asked, rows, missing, len(names), clips_per_part, batch_size, num_workers)
        for part, part_names, probabilities in heard:
            _write_part(_part_path(folder, part), part_names, probabilities.astype(number_type))
            bar.update(len(part_names))
    return _names_without_targets(folder, len(names), clips_per_part)


def _begin_or_go_on(folder: Path, description: dict[str, Any]):
    path = folder / DESCRIPTION_FILE
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        if differing := [name for name in description if before.get(name) != description[name]]:
            raise ValueError(
                f"{folder} holds soft targets that differ in `{differing[0]}`: they are of another teacher, of other "
                "clips, or were asked for otherwise. Name another folder, or remove this one."
            )
        return
    if folder.exists() and not (folder.is_dir() and all(map(is_leftover, folder.iterdir()))):
        raise FileExistsError(f"{folder} exists, and holds no soft targets; name another folder, or remove it first.")
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: json.dump(description, file, indent=2, ensure_ascii=False))


class _Waveforms(Dataset):
    """Name, waveform at the teacher's rate (None where it cannot be decoded) and what is wrong, by number."""

    def __init__(self, rows: ClipRows, sampling_rate: int):
        self.rows, self.sampling_rate = rows, sampling_rate

    def __getitem__(self, index: int) -> tuple[str, Waveform | None, str]:
        row = self.rows[index]
        try:
            return row["video_id"], load_audio(row["audio"], self.sampling_rate), ""
        except AudioError as error:
            return row["video_id"], None, str(error)


def _heard(
    teacher: Teacher,
    rows: ClipRows,
    parts: Sequence[int],
    num_clips: int,
    clips_per_part: int,
    batch_size: int,
    num_workers: int,
) -> Iterator[tuple[int, list[str], np.ndarray]]:
    """Number, names and probabilities of each of these parts."""
    parts_of_batches, batches = [], []
    for part in parts:
        indices = range(part * clips_per_part, min((part + 1) * clips_per_part, num_clips))
        inside = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]
        batches += inside
        parts_of_batches += [(part, number == len(inside) - 1) for number in range(len(inside))]
    loader: DataLoader = DataLoader(
        _Waveforms(rows, teacher.sampling_rate),
        batch_sampler=batches,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # nothing is drawn; without one, PyTorch would take from everybody's
    )
    names: list[str] = []
    probabilities: list[np.ndarray] = []
    for (part, is_last), clips in zip(parts_of_batches, loader, strict=True):
        names += [name for name, _, _ in clips]
        probabilities.append(_hear_readable(teacher, clips))
        if is_last:
            yield part, names, np.concatenate(probabilities)
            names, probabilities = [], []


def _hear_readable(teacher: Teacher, clips: Sequence[tuple[str, Waveform | None, str]]) -> np.ndarray:
    """Probabilities `(clips, classes)`; NaN for those without a waveform."""
    probabilities = np.full((len(clips), len(teacher.label_names)), np.nan, dtype=np.float32)
    for name, waveform, problem in clips:
        if waveform is None:
            logger.warning(f"The teacher cannot hear {name}: {problem}")
    readable = [(index, waveform) for index, (_, waveform, _) in enumerate(clips) if waveform is not None]
    if readable:
        indices, waveforms = zip(*readable, strict=True)
        probabilities[list(indices)] = teacher.hear(waveforms).cpu().numpy()
    return probabilities


def _part_path(folder: Path, part: int) -> Path:
    return folder / f"part-{part:05d}.safetensors"


def _write_part(path: Path, names: Sequence[str], probabilities: np.ndarray):
    listed = np.frombuffer(json.dumps(list(names)).encode(), dtype=np.uint8)
    with whole_file(path) as temporary:
        save_file({"probabilities": probabilities, "video_ids": listed}, temporary)


def _names_in(part: Any) -> list[str]:
    return json.loads(part.get_tensor("video_ids").tobytes())


def _names_without_targets(folder: Path, num_clips: int, clips_per_part: int) -> list[str]:
    without = []
    for part in range(-(-num_clips // clips_per_part)):
        with safe_open(_part_path(folder, part), "np") as file:
            first_class = file.get_slice("probabilities")[:, 0]
            without += [name for name, lacks in zip(_names_in(file), np.isnan(first_class), strict=True) if lacks]
    return without


def _digest(pieces: Iterator[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()


def _bytes_of(model: Any) -> Iterator[bytes]:
    for name, values in sorted(model.state_dict().items()):
        yield name.encode()
        yield values.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()


class SoftTargets(Mapping[str, np.ndarray]):
    """A teacher's probabilities by the names of clips, in the order of the student's classes.

    They stay on disk, mapped into memory as they are asked for. Picklable, so that workers of a DataLoader have them.
    """

    def __init__(self, folder: Path, columns: Sequence[int], names: Sequence[str], clips_per_part: int):
        self.folder, self.clips_per_part = folder, clips_per_part
        self._columns = np.array(columns)
        # Sorted bytes: millions of strings in a dictionary take ten times the memory, in every worker.
        encoded = np.array([name.encode() for name in names] or [b""][:0], dtype=bytes)
        self._order = np.argsort(encoded)
        self._names = encoded[self._order]
        self._parts: dict[int, Any] = {}

    @classmethod
    def load(cls, path: str | os.PathLike[str], label_names: Sequence[str]) -> "SoftTargets":
        """What `cache_soft_targets` wrote, for a student with these classes, all of which the teacher must know."""
        folder = Path(path)
        if not (folder / DESCRIPTION_FILE).is_file():
            raise ValueError(f"{folder} holds no soft targets; make them with `cache_soft_targets`.")
        description = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        columns = _columns(label_names, description["label_names"], f"The teacher of {folder}")
        num_parts = -(-description["num_clips"] // description["clips_per_part"])
        names: list[str] = []
        for part in range(num_parts):
            if not _part_path(folder, part).is_file():
                raise ValueError(f"{folder} is not complete; make the same `cache_soft_targets` again, which goes on.")
            with safe_open(_part_path(folder, part), "np") as file:
                names += _names_in(file)
        return cls(folder, columns, names, description["clips_per_part"])

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return (name.decode() for name in self._names)

    def __contains__(self, video_id: object) -> bool:
        return isinstance(video_id, str) and self._find(video_id) is not None

    def __getitem__(self, video_id: str) -> np.ndarray:
        """Probabilities `(classes,)` in float32; NaN for a clip that the teacher could not hear."""
        row = self._find(video_id)
        if row is None:
            raise KeyError(f"{self.folder} has no soft targets of the clip {video_id}: make them for these clips.")
        part, place = divmod(row, self.clips_per_part)
        if part not in self._parts:
            self._parts[part] = safe_open(_part_path(self.folder, part), "np").get_slice("probabilities")
        return self._parts[part][place : place + 1][0, self._columns].astype(np.float32)

    def _find(self, video_id: str) -> int | None:
        """The number of a clip, in the order in which the teacher heard them."""
        key = video_id.encode()
        if len(key) > self._names.dtype.itemsize:
            return None
        position = int(np.searchsorted(self._names, np.array(key, dtype=self._names.dtype)))
        is_there = position < len(self._names) and self._names[position] == key
        return int(self._order[position]) if is_there else None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_parts": {}}  # open files stay with their process


# ── asked during training ─────────────────────────────────────────────────────────────────────────────────────────────

# What decides that two extractors make the same features of a waveform.
FEATURE_VALUES = (*SPECTROGRAM_VALUES, "clip_frames", "short_clips")


class OnlineTeacher(Teacher):
    """Probabilities, in the order of the student's classes, of the very crops that the student hears.

    An HTS-AT whose extractor is like the student's hears the student's features; any other teacher hears the
    waveforms, resampled where the rates differ, through its own extractor. It moves to the device of the inputs.

    Args:
        model, feature_extractor, problem_type: see `Teacher`.
        label_names: the student's classes in their order, all of which the teacher must know.
        sampling_rate_of_student: the rate of the waveforms.
        student_extractor: the student's own, to see whether its features will do.
    """

    def __init__(
        self,
        model: Any,
        feature_extractor: Any,
        label_names: Sequence[str],
        sampling_rate_of_student: int,
        student_extractor: HTSATFeatureExtractor | None = None,
        problem_type: str | None = None,
    ):
        super().__init__(model, feature_extractor, problem_type)
        columns = _columns(label_names, self.label_names, f"The teacher, a {type(model).__name__},")
        self._columns = torch.tensor(columns)
        self.sampling_rate_of_student = sampling_rate_of_student
        self.needs_waveforms = not (
            "HTSATPreTrainedModel" in class_names(model)
            and student_extractor is not None
            and all(getattr(feature_extractor, name) == getattr(student_extractor, name) for name in FEATURE_VALUES)
        )

    def __call__(self, waveforms: Sequence[Waveform] | None, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Probabilities `(batch, classes)` on the device of the student's features."""
        device = inputs["input_features"].device
        if self.model.device != device:
            self.model.to(device)
        if not self.needs_waveforms:
            names = ("input_features", "attention_mask")
            probabilities = self.judge({name: inputs[name] for name in names if inputs.get(name) is not None})
        elif waveforms is None:
            raise ValueError(
                "This teacher hears waveforms, and none came; collate them with the batch. Only an HTS-AT whose "
                "feature extractor is like the student's, given as `student_extractor`, takes the student's features."
            )
        else:
            probabilities = self.hear([self._at_own_rate(waveform) for waveform in waveforms])
        return probabilities[:, self._columns.to(device)]

    def _at_own_rate(self, waveform: Waveform) -> Waveform:
        if self.sampling_rate_of_student == self.sampling_rate:
            return waveform
        return soxr.resample(waveform, self.sampling_rate_of_student, self.sampling_rate)


# ── the loss ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def distillation_loss(
    logits: torch.Tensor, soft_targets: torch.Tensor, problem_type: str | None, temperature: float = 1.0
) -> torch.Tensor:
    """How far a student's clip logits `(batch, classes)` are from a teacher's probabilities; NaN ones do not count.

    Single labels: the Kullback-Leibler divergence, 0 where they agree. Otherwise the mean binary cross-entropy.

    Args:
        temperature: for single labels: softens both by this much, and scales the loss by its square, so that gradients
            stay as large.
    """
    if soft_targets.shape != logits.shape:
        raise ValueError(
            f"Soft targets have shape {tuple(soft_targets.shape)} and logits {tuple(logits.shape)}; they must agree."
        )
    if problem_type != SINGLE:
        if temperature != 1:
            raise ValueError(f"`temperature` is {temperature}; it softens single labels alone: leave it at 1.")
        return multi_label_loss(logits, soft_targets, "soft_targets")
    targets = soft_targets.to(device=logits.device, dtype=torch.float32)
    is_known = ~targets.isnan().any(1)
    targets = (targets.where(is_known[:, None], 1).log() / temperature).softmax(1)
    students = (logits.float() / temperature).log_softmax(1)
    losses = F.kl_div(students, targets, reduction="none").sum(1) * temperature**2
    return (losses * is_known).sum() / is_known.sum().clamp(min=1)


__all__ = ["OnlineTeacher", "SoftTargets", "Teacher", "cache_soft_targets", "distillation_loss"]
