"""Several checkpoints as one model, whose probabilities are the mean of theirs.

Pipelines and Trainer make probabilities of logits, so an ensemble returns the logits that their sigmoid or softmax
turns into that mean. These come from the members' logits without a probability in between: near 0 and 1 none is rounded
away.
"""

import json
import os
from collections.abc import Callable, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import cached_file

from .configuration_htsat import SPECTROGRAM_VALUES, HTSATConfig
from .feature_extraction_htsat import HTSATFeatureExtractor
from .modeling_htsat import (
    HTSATForAudioClassification,
    HTSATForSoundEventDetection,
    HTSATModelOutput,
    HTSATPreTrainedModel,
)
from .tables import write_whole

MEMBERS_FILE = "ensemble.json"  # in the folder of an ensemble: the names of its members' folders
# What members must share, so that one spectrogram serves all and their steps are the same.
SHARED_VALUES = (*SPECTROGRAM_VALUES, "clip_frames", "num_steps", "overlap_steps", "problem_type")
Mean = Callable[[Sequence[torch.Tensor]], torch.Tensor]


# ── the mean of probabilities, as logits ──────────────────────────────────────────────────────────────────────────────


def mean_sigmoid_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logits, in float32, whose sigmoid is the mean of the sigmoids of these."""
    members = torch.stack([scores.float() for scores in logits])
    return F.logsigmoid(members).logsumexp(0) - F.logsigmoid(-members).logsumexp(0)


def mean_softmax_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    """The logits, in float32, whose softmax over the last axis is the mean of the softmaxes of these."""
    members = torch.stack([scores.float() for scores in logits])
    # Divided by their number, which softmax would do without: so they are log probabilities.
    return members.log_softmax(-1).logsumexp(0) - torch.tensor(float(len(members))).log()


def mean_logits(logits: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([values.float() for values in logits]).mean(0)


# ── the parts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class EnsembleEncoder:
    """The members' encoders as one: maps and embeddings stand side by side, `dim` being the sum of theirs."""

    def __init__(self, members: Sequence[nn.Module]):
        self.encoders = [member.htsat for member in members]
        # The input layers of the first: what others ask for types, and hang their progress bars on.
        self.mel_norm, self.patch_embed = self.encoders[0].mel_norm, self.encoders[0].patch_embed

    def __call__(self, *inputs: Any) -> HTSATModelOutput:
        outputs = [encoder(*inputs, return_dict=True) for encoder in self.encoders]
        hidden_states = sum((output.hidden_states or () for output in outputs), ())
        attentions = sum((output.attentions or () for output in outputs), ())
        return HTSATModelOutput(
            last_hidden_state=torch.cat([output.last_hidden_state for output in outputs], dim=1),
            pooler_output=torch.cat([output.pooler_output for output in outputs], dim=1),
            step_mask=outputs[0].step_mask,
            hidden_states=hidden_states or None,
            attentions=attentions or None,
        )

    def encode(self, windows: torch.Tensor) -> tuple[torch.Tensor, tuple[()], tuple[()]]:
        """The maps `(windows, dim, bins, steps)` of spectrograms of exactly one window, as `HTSATModel.encode`."""
        return torch.cat([encoder.encode(windows)[0] for encoder in self.encoders], dim=1), (), ()


class EnsembleHead:
    """Every member's head on its own part of the maps, and the mean of what they say."""

    def __init__(self, members: Sequence[HTSATPreTrainedModel], mean_of_clips: Mean):
        self.heads = [member.classifier for member in members]
        self.dims = [member.config.hidden_size for member in members]
        self.mean_of_clips = mean_of_clips

    def __call__(self, encoded: HTSATModelOutput) -> tuple[torch.Tensor, torch.Tensor]:
        maps = torch.split(encoded.last_hidden_state, self.dims, dim=1)
        embeddings = torch.split(encoded.pooler_output, self.dims, dim=1)
        scores = [
            head(HTSATModelOutput(feature_map, embedding, encoded.step_mask))
            for head, feature_map, embedding in zip(self.heads, maps, embeddings, strict=True)
        ]
        frame_logits, clip_logits = zip(*scores, strict=True)
        return mean_sigmoid_logits(frame_logits), self.mean_of_clips(clip_logits)


# ── the models ────────────────────────────────────────────────────────────────────────────────────────────────────────


class HTSATEnsemble(HTSATPreTrainedModel):
    """What both ensembles share.

    `members` are the models; `config` is a copy of the first one's. `htsat` and `classifier` are the members' parts
    joined, so that whatever takes a model apart, as `LiveDetector` does, takes an ensemble too. `pooler_output` holds
    the members' embeddings one after the other. Logits are float32. Members stay as they are: an ensemble listens.
    """

    member_class: type[HTSATPreTrainedModel]
    htsat: Any
    classifier: Any

    def __init__(self, members: Sequence[HTSATPreTrainedModel], config: HTSATConfig | None = None):
        check_members(members)
        config = deepcopy(members[0].config if config is None else config)
        config.architectures = [type(self).__name__]
        PreTrainedModel.__init__(self, config)  # past the member class, which would build an encoder
        self.post_init()  # before there are weights that it could draw anew
        self.members = nn.ModuleList(members)
        self.htsat = EnsembleEncoder(members)
        self.classifier = EnsembleHead(members, self._mean_of_clips())
        self.eval()

    def _mean_of_clips(self) -> Mean:
        raise NotImplementedError

    def save_pretrained(self, save_directory: str | os.PathLike[str], is_main_process: bool = True, **options: Any):
        """Write every member to a folder `member-0`, `member-1`, ... inside, and what they share beside them."""
        if not is_main_process:
            return
        options.pop("state_dict", None)  # Trainer's; the members have their own
        folder = Path(save_directory)
        names = [f"member-{index}" for index in range(len(self.members))]
        for name, member in zip(names, self.members, strict=True):
            member.save_pretrained(folder / name, **options)
        self.config.save_pretrained(folder)
        write_whole(folder / MEMBERS_FILE, lambda file: json.dump({"members": names}, file))  # last: now it is whole

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], config: HTSATConfig | None = None, **options: Any
    ):
        """Read what `save_pretrained` wrote; options such as `dtype` go to every member."""
        name = pretrained_model_name_or_path
        names = member_names(name)
        if not names:
            raise ValueError(f"{name} is no ensemble: it has no {MEMBERS_FILE}. `load_ensemble` makes one of models.")
        config = config or HTSATConfig.from_pretrained(name)
        return cls([load_member(cls.member_class, name, subfolder=part, **options) for part in names], config)


class HTSATEnsembleForAudioClassification(HTSATEnsemble, HTSATForAudioClassification):
    """Several [`HTSATForAudioClassification`] as one. Without a `problem_type`, labels exclude one another, as
    pipelines take it."""

    member_class = HTSATForAudioClassification

    def _mean_of_clips(self) -> Mean:
        means = {"multi_label_classification": mean_sigmoid_logits, "regression": mean_logits}
        return means.get(self.config.problem_type, mean_softmax_logits)


class HTSATEnsembleForSoundEventDetection(HTSATEnsemble, HTSATForSoundEventDetection):
    """Several [`HTSATForSoundEventDetection`] as one."""

    member_class = HTSATForSoundEventDetection

    def _mean_of_clips(self) -> Mean:
        is_single = self.config.problem_type == "single_label_classification"
        return mean_softmax_logits if is_single else mean_sigmoid_logits


# ── checks ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def check_members(members: Sequence[HTSATPreTrainedModel]):
    if not members:
        raise ValueError("An ensemble needs at least one model, and none came.")
    first = members[0]
    for index, member in enumerate(members):
        if type(member) is not type(first):
            raise ValueError(
                f"Member {index} is a {type(member).__name__} and member 0 a {type(first).__name__}; members of an "
                "ensemble are of one class. Load all for the same task."
            )
        _check_labels(index, first.config, member.config)
        for name in SHARED_VALUES:
            _check_same(f"Member {index}", name, getattr(member.config, name), getattr(first.config, name))


def _check_labels(index: int, first: HTSATConfig, other: HTSATConfig):
    if other.num_labels != first.num_labels:
        raise ValueError(f"Member {index} knows {other.num_labels} labels and member 0 knows {first.num_labels}.")
    for label in range(first.num_labels):
        if other.id2label[label] != first.id2label[label]:
            raise ValueError(
                f"Label {label} of member {index} is {other.id2label[label]!r} and that of member 0 is "
                f"{first.id2label[label]!r}; members of an ensemble have the same labels in the same order."
            )


def _check_same(who: str, name: str, value: Any, first: Any):
    if value != first:
        raise ValueError(
            f"{who} has {value!r} as its `{name}` and member 0 has {first!r}; members of an ensemble hear the same "
            "spectrogram and answer for the same time steps."
        )


# ── loading ───────────────────────────────────────────────────────────────────────────────────────────────────────────

ENSEMBLES: dict[str, type[HTSATEnsemble]] = {
    "audio-classification": HTSATEnsembleForAudioClassification,
    "sound-event-detection": HTSATEnsembleForSoundEventDetection,
}


def load_ensemble(names: Sequence[str | os.PathLike[str]], task: str, **options: Any) -> HTSATPreTrainedModel:
    """The models of these folders or names on the Hub as one; a single name gives the plain model.

    A name may be that of a saved ensemble: alone it is that ensemble, among others its members join them.

    Args:
        task: "audio-classification" or "sound-event-detection".
        options: such as `dtype` or `device_map`: go to every member.
    """
    if task not in ENSEMBLES:
        raise ValueError(f"The task is {task!r}; it must be {' or '.join(ENSEMBLES)}.")
    if isinstance(names, str | os.PathLike) or not names:
        raise ValueError(f"An ensemble is loaded from a list of names, and {names!r} came.")
    ensemble_class: Any = ENSEMBLES[task]
    if len(names) == 1 and member_names(names[0]):
        return ensemble_class.from_pretrained(names[0], **options)
    members = []
    for name in names:
        for part in member_names(name) or [""]:
            members.append(load_member(ensemble_class.member_class, name, subfolder=part, **options))
    return members[0] if len(members) == 1 else ensemble_class(members)


def load_ensemble_extractor(names: Sequence[str | os.PathLike[str]]) -> HTSATFeatureExtractor:
    """The feature extractor that all of these have in common."""
    if isinstance(names, str | os.PathLike) or not names:
        raise ValueError(f"The extractor of an ensemble is loaded from a list of names, and {names!r} came.")
    extractors = [_load(f"The feature extractor of {name}", HTSATFeatureExtractor, name) for name in names]
    first = extractors[0].to_dict()
    for name, extractor in zip(names, extractors, strict=True):
        values = extractor.to_dict()
        for key in sorted({*first, *values}):
            if values.get(key) != first.get(key):
                raise ValueError(
                    f"The feature extractor of {name} has {values.get(key)!r} as its `{key}` and that of {names[0]} "
                    f"has {first.get(key)!r}; members of an ensemble hear the same spectrogram."
                )
    return extractors[0]


def member_names(name: str | os.PathLike[str]) -> list[str]:
    """The folders of the members inside a saved ensemble; none for what is not one."""
    try:
        path = cached_file(name, MEMBERS_FILE)
    except (OSError, ValueError):  # a plain model has no such file
        return []
    return json.loads(Path(path).read_text(encoding="utf-8"))["members"] if path else []


def load_member(model_class: Any, name: str | os.PathLike[str], subfolder: str = "", **options: Any) -> Any:
    """A model with all of its weights: a head drawn at random would spoil the mean without a word."""
    place = f"{name}/{subfolder}" if subfolder else str(name)
    options |= {"subfolder": subfolder, "output_loading_info": True}
    model, info = _load(f"The model {place}", model_class, name, **options)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"The model {place} lacks weights, {missing[0]} among them; train it for its labels first.")
    return model.eval()


def _load(what: str, loaded_class: Any, name: str | os.PathLike[str], **options: Any) -> Any:
    try:
        return loaded_class.from_pretrained(name, **options)
    except Exception as error:  # what the Hub, torch and safetensors raise is anybody's guess
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise ValueError(f"{what} cannot be loaded: {reason}") from error


__all__ = [
    "HTSATEnsembleForAudioClassification",
    "HTSATEnsembleForSoundEventDetection",
    "load_ensemble",
    "load_ensemble_extractor",
]
