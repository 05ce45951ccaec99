"""From any audio to answers: pipelines that tag a recording, and that find its events with onset and offset."""

import inspect
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import AudioClassificationPipeline, Pipeline
from transformers.pipelines.pt_utils import PipelineIterator
from transformers.utils import ModelOutput, logging

from .audio_htsat import AudioError, open_audio
from .events_htsat import EventDecoding, decode_events, group_scores, interleave_shifts
from .feature_extraction_htsat import HTSATFeatureExtractor
from .hub_htsat import HTSATHubMixin, class_names

logger = logging.get_logger(__name__)

# What a model and its feature extractor must agree on, for times to be right.
FRONT_END = ("sampling_rate", "hop_length", "num_mel_bins", "clip_frames", "frames_per_step")
READING_OPTIONS = {"on_error", *inspect.signature(open_audio).parameters} - {"source"}
UNSAID = object()  # where None means something
LONG_SECONDS = 120.0  # recordings from here on show a progress bar, where there is a screen to show it on


class HTSATAudioReader(HTSATHubMixin):
    """What both pipelines share: any audio in, features and duration out, an hour as well as a second.

    A source is a path, a URL, the bytes of a file or a file object; an array, tensor or list of samples at the model's
    rate; a dictionary with `array` (or `raw`) and `sampling_rate`; or a row of `datasets` with undecoded `bytes`.

    With `on_error="skip"`, at construction or in the call, a source that cannot be heard has the answer None; a warning
    at the end says which ones failed and why, and so does `failed` of the last call, `{place: sentence}`.
    """

    model: Any
    feature_extractor: HTSATFeatureExtractor
    failed: Mapping[int, str] = {}
    _sanitize_parameters: Callable[..., tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]
    _hear: Callable[..., dict[str, torch.Tensor]]  # what the model says of a batch
    _answer: Callable[..., Any]  # what that means for one source

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Answer for one source, or for many: a list of them, an iterator, a data set or its column of sounds.

        A list gives a list, the others an iterable that works as it is asked.
        """
        failed: dict[int, str] = {}
        self.failed = failed
        if isinstance(inputs, list | tuple):
            if not inputs:
                return []
            is_one_sound = all(isinstance(item, numbers.Real) for item in inputs)
            inputs = (tuple if is_one_sound else list)(inputs)  # transformers takes lists alone to be many
        elif _gives_many(inputs):
            inputs = (source for source in inputs)
        answers = super().__call__(inputs, **kwargs)  # type: ignore[misc]
        if isinstance(inputs, list):
            return list(Answers(answers, failed))
        if isinstance(answers, PipelineIterator):
            return Answers(answers, failed)
        (answer,) = Answers([answers], failed)
        return answer

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any):
        """Save model and extractor, of which any of these pipelines is made again.

        transformers would name the pipeline too, and then ask for `trust_remote_code` even where it is installed.
        """
        self.model.save_pretrained(save_directory, *args, **kwargs)
        self.feature_extractor.save_pretrained(save_directory, *args, **kwargs)

    def _add_card(self, folder: Path, name: str, tags: list[str]):
        self.model._add_card(folder, name, tags)

    def _reading_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """What `preprocess` is told, once it is known that there are such options."""
        own = {name for name in inspect.signature(self._sanitize_parameters).parameters if name != "options"}
        if strangers := sorted(options.keys() - own - READING_OPTIONS):
            known = ", ".join(sorted(own | READING_OPTIONS))
            raise TypeError(f"The pipeline has no option `{strangers[0]}`; it has {known}.")
        if options.get("on_error", "raise") not in ("raise", "skip"):
            raise ValueError(f'`on_error` is {options["on_error"]!r}; it must be "raise" or "skip".')
        return options

    def preprocess(self, source: Any, on_error: str = "raise", **audio_options: Any) -> dict[str, Any]:
        """Features of one source, with its duration; or a moment of silence in its place, with what went wrong."""
        try:
            return {**self._features(source, **audio_options), "error": None}
        except AudioError as error:
            if on_error == "raise":
                raise
            # A new one: the traceback of the old one would hold on to all that was read.
            return {**self._features(np.zeros(1)), "error": AudioError(str(error))}

    def _features(self, source: Any, **audio_options: Any) -> dict[str, torch.Tensor]:
        """Read in blocks, so that no waveform is whole in memory."""
        rate = self.feature_extractor.sampling_rate
        num_samples = 0

        def counted(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            nonlocal num_samples
            for block in blocks:
                num_samples += len(block)
                yield block

        with open_audio(source, **{"source_sampling_rate": rate, **audio_options}) as audio:
            features = self.feature_extractor.extract_blocks(counted(audio.blocks(rate)))
        return {**features, "num_samples": torch.tensor([num_samples])}

    def _forward(self, inputs: dict[str, Any], **options: Any) -> dict[str, Any]:
        """What the model says; in a batch, the silence in place of a source that failed is heard with the others."""
        error = inputs.pop("error")  # of a batch, the list of theirs
        return {"error": error} if isinstance(error, AudioError) else {**self._hear(inputs, **options), "error": error}

    def postprocess(self, outputs: dict[str, Any], **options: Any) -> Any:
        """The answer for one source, or the error that took its place."""
        return outputs["error"] or self._answer(outputs, **options)


class Answers:
    """The answers of a pipeline, None for a source that failed; after the last one a warning says which these were."""

    def __init__(self, answers: Iterable[Any], failed: dict[int, str]):
        self.answers, self.failed = answers, failed

    def __len__(self) -> int:
        return len(self.answers)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Any]:
        self.failed.clear()
        place = -1
        try:
            for place, answer in enumerate(self.answers):
                if isinstance(answer, AudioError):
                    self.failed[place] = str(answer)
                yield None if isinstance(answer, AudioError) else answer
        finally:  # also where the asking ends early
            if self.failed:
                sentences = "".join(f"\n  {place}: {sentence}" for place, sentence in self.failed.items())
                logger.warning(f"{len(self.failed)} of {place + 1} sources could not be heard:{sentences}")


@contextmanager
def window_progress(model: Any, duration_seconds: float, is_shown: bool | None) -> Iterator[None]:
    """Show a bar of the seconds of sound that the encoder has heard; None shows it for long recordings on a screen.

    Of an ensemble, the first member's encoder counts.
    """
    if is_shown is False or (is_shown is None and duration_seconds < LONG_SECONDS):
        yield
        return
    config, total = model.config, round(duration_seconds)
    window_seconds = (config.num_steps - config.overlap_steps) * config.seconds_per_step(config.clip_frames + 1)
    encoder = getattr(model, model.base_model_prefix)
    with tqdm(total=total, unit="s", desc="listening", disable=None if is_shown is None else False) as bar:

        def advance(module: nn.Module, arguments: tuple[torch.Tensor, ...]):
            bar.update(min(round(len(arguments[0]) * window_seconds), total - bar.n))

        hook = encoder.patch_embed.register_forward_pre_hook(advance)
        try:
            yield
        finally:
            hook.remove()
        bar.update(total - bar.n)  # the last window is longer than the step from one to the next


class HTSATAudioClassificationPipeline(HTSATAudioReader, AudioClassificationPipeline):
    """`audio-classification` for any audio: use it as `pipeline(..., pipeline_class=...)`.

    Differs from the stock pipeline where that fails: any rate (resampled), several channels (mixed down), integer PCM
    (scaled), files without ffmpeg, detectors (their scores of the whole clip), sources that cannot be heard (see
    `HTSATAudioReader`), and `top_k`, which counts where it was given: at construction (5 by default) or in the call.
    """

    def _sanitize_parameters(self, function_to_apply=None, progress_bar=None, top_k=UNSAID, **options):
        said = {"top_k": top_k is not UNSAID, "function_to_apply": function_to_apply is not None}
        top_k = None if top_k is UNSAID else top_k
        _, _, postprocess = super()._sanitize_parameters(top_k=top_k, function_to_apply=function_to_apply)
        # The stock pipeline fills in what was not said, and so forgets what was said at construction.
        postprocess = {name: value for name, value in postprocess.items() if said.get(name, True)}
        return self._reading_options(options), _given({"progress_bar": progress_bar}), postprocess

    def check_model_type(self, supported_models: Any):
        """In place of the list that transformers keeps: a detector can tag, and so can an ensemble."""
        if not _is_kind(self.model, "ForAudioClassification", "ForSoundEventDetection"):
            raise ValueError(
                "Tagging takes an HTSATForAudioClassification or an HTSATForSoundEventDetection, and a "
                f"{type(self.model).__name__} came. Load it with `AutoModelForAudioClassification`."
            )

    def _hear(self, inputs: dict[str, torch.Tensor], progress_bar: bool | None = None) -> dict[str, torch.Tensor]:
        num_samples = inputs.pop("num_samples")
        seconds = int(num_samples.sum()) / self.feature_extractor.sampling_rate
        with window_progress(self.model, seconds, progress_bar):
            outputs = self.model(**inputs)
        return {"logits": getattr(outputs, "clip_logits", outputs.logits)}

    def _answer(
        self, outputs: dict[str, torch.Tensor], top_k: int = 5, function_to_apply: str | None = None
    ) -> list[dict[str, Any]]:
        # Before transformers 5.23 the stock pipeline takes all labels to exclude one another.
        usual = {"multi_label_classification": "sigmoid", "regression": "none"}
        function = function_to_apply or usual.get(self.model.config.problem_type, "softmax")
        logits = ModelOutput(logits=outputs["logits"])
        return AudioClassificationPipeline.postprocess(self, logits, top_k=top_k, function_to_apply=function)


class HTSATSoundEventDetectionPipeline(HTSATAudioReader, Pipeline):
    """`sound-event-detection`: when which sounds are heard.

    Calling it gives, for every source, a list of `{"label", "onset", "offset", "score"}` in seconds, sorted by onset.
    Options, at construction or in the call:
        threshold: a score for all classes, in place of the model's own decoding.
        decoding: an `EventDecoding` or its dictionary, in place of `model.config.event_decoding`.
        groups: `{name: [classes]}`, by index or label: report these groups of classes instead of the classes.
        time_refinement: run the clip this many times, shifted by fractions of a time step, for finer times.
        return_scores: give `{"events", "tags", "scores", "edges", "labels", "num_samples", "log_mel"}` instead of the
            events alone.
        progress_bar: True or False; by default for recordings of two minutes and more, where there is a screen.
        on_error: "raise" (the default), or "skip" to go on past sources that cannot be heard: see `HTSATAudioReader`.
        allow_truncated, allow_private_urls, ...: see `open_audio`.
    """

    _load_processor = False
    _load_image_processor = False
    _load_feature_extractor = True
    _load_tokenizer = False

    def _sanitize_parameters(
        self,
        threshold: float | None = None,
        decoding: EventDecoding | Mapping[str, Any] | None = None,
        groups: Mapping[str, Iterable[int | str]] | None = None,
        time_refinement: int | None = None,
        return_scores: bool | None = None,
        progress_bar: bool | None = None,
        **options: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if threshold is not None and decoding is not None:
            raise ValueError("`threshold` and `decoding` were both given; a decoding has its own thresholds.")
        if threshold is not None:
            decoding = EventDecoding(threshold=threshold)
        if time_refinement is not None and time_refinement < 1:
            raise ValueError(f"`time_refinement` is {time_refinement}; it must be at least 1.")
        if groups is not None:
            groups = _by_index(groups, self.model.config)
        forward = {"time_refinement": time_refinement, "progress_bar": progress_bar}
        postprocess = {"decoding": decoding, "groups": groups, "return_scores": return_scores}
        return self._reading_options(options), _given(forward), _given(postprocess)

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if not _is_kind(self.model, "ForSoundEventDetection"):
            raise ValueError(
                f"Finding events takes an HTSATForSoundEventDetection, and a {type(self.model).__name__} came. Load it "
                "with `AutoModelForAudioFrameClassification.from_pretrained(...)`."
            )
        for name in FRONT_END:
            ours, theirs = getattr(self.feature_extractor, name), getattr(self.model.config, name)
            if ours != theirs:
                raise ValueError(
                    f"The feature extractor is not this model's: its `{name}` is {ours}, the model's is {theirs}."
                )

    def _hear(
        self, inputs: dict[str, torch.Tensor], time_refinement: int = 1, progress_bar: bool | None = None
    ) -> dict[str, torch.Tensor]:
        num_samples = inputs.pop("num_samples")
        seconds = time_refinement * int(num_samples.sum()) / self.feature_extractor.sampling_rate
        passes = []
        with window_progress(self.model, seconds, progress_bar):
            for index in range(time_refinement):
                outputs = self.model(**self._begin_later(inputs, num_samples, index / time_refinement))
                passes.append(outputs.logits)
                if index == 0:
                    clip_logits = outputs.clip_logits
        return {
            "logits": torch.stack(passes, dim=1),  # (batch, passes, steps, classes)
            "clip_logits": clip_logits,
            "num_samples": num_samples,
            "log_mel": inputs["input_features"],
        }

    def _begin_later(
        self, inputs: dict[str, torch.Tensor], num_samples: torch.Tensor, fraction: float
    ) -> dict[str, torch.Tensor]:
        """The features without their first fraction of a time step; the end is mirrored, so that none is shorter."""
        if fraction == 0:
            return inputs
        features, mask = inputs["input_features"], inputs.get("attention_mask")
        steps = [self._num_steps(int(samples)) for samples in num_samples]
        own_frames = [self.feature_extractor.num_frames(int(samples)) for samples in num_samples]
        shift = [round(fraction * frames / count) for frames, count in zip(own_frames, steps, strict=True)]
        last = mask.sum(1) - 1 if mask is not None else torch.full((len(features),), features.shape[1] - 1)
        frame = torch.arange(features.shape[1]) + torch.tensor(shift)[:, None]  # (batch, frames)
        last = last[:, None].cpu()
        frame = torch.where(frame > last, 2 * last - frame, frame).clamp(min=0).to(features.device)
        return {**inputs, "input_features": features.gather(1, frame[..., None].expand_as(features))}

    def _num_steps(self, num_samples: int) -> int:
        """The time steps of a clip before it was repeated or padded; scores of no class at all have them too."""
        no_classes = torch.zeros(self.model.config.num_steps_of(self.feature_extractor.num_frames(num_samples)), 0)
        seconds = num_samples / self.feature_extractor.sampling_rate
        return len(self.feature_extractor.scores_over_time(no_classes, seconds)[0])

    def _answer(
        self,
        outputs: dict[str, torch.Tensor],
        decoding: EventDecoding | Mapping[str, Any] | None = None,
        groups: Mapping[str, Sequence[int]] | None = None,
        return_scores: bool = False,
    ) -> Any:
        config = self.model.config
        seconds = int(outputs["num_samples"]) / self.feature_extractor.sampling_rate
        scores, edges = self._fine_scores(outputs["logits"][0], seconds)
        labels = [config.id2label[index] for index in range(config.num_labels)]
        if groups is not None:
            scores, labels = group_scores(scores, groups), list(groups)
        elif decoding is None:
            decoding = config.event_decoding
        if not isinstance(decoding, EventDecoding):
            decoding = EventDecoding.from_dict(decoding or {})
        events = decode_events(scores, None, decoding, labels, step_edges_seconds=edges)
        if not return_scores:
            return events
        return {
            "events": events,
            "tags": self._tags(outputs["clip_logits"][0].float()),
            "scores": scores,
            "edges": edges,
            "labels": labels,
            "num_samples": int(outputs["num_samples"]),
            "log_mel": self._own_frames(outputs["log_mel"][0], seconds),
        }

    def _tags(self, clip_logits: torch.Tensor) -> dict[str, float]:
        is_single = self.model.config.problem_type == "single_label_classification"
        scores = clip_logits.softmax(-1) if is_single else clip_logits.sigmoid()
        return {self.model.config.id2label[index]: score for index, score in enumerate(scores.tolist())}

    def _fine_scores(self, logits: torch.Tensor, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        passes = [self.feature_extractor.scores_over_time(one_pass, seconds) for one_pass in logits]
        scores, edges = interleave_shifts([scores for scores, _ in passes]), passes[0][1]
        fine = np.interp(np.arange(len(scores) + 1) / len(passes), np.arange(len(edges)), edges)
        return scores, fine

    def _own_frames(self, log_mel: torch.Tensor, seconds: float) -> np.ndarray:
        """A copy: the frames of a worker are in an open file, and those of a batch hold on to all of it."""
        num_frames = self.feature_extractor.num_frames(math.ceil(seconds * self.feature_extractor.sampling_rate))
        return log_mel[:num_frames].float().cpu().numpy().copy()


def _gives_many(inputs: Any) -> bool:
    """Whether this is an iterator, a `datasets.Dataset` or a column of one, and neither samples nor a file."""
    is_one_source = isinstance(inputs, str | bytes | bytearray | memoryview | Mapping | np.ndarray | torch.Tensor)
    return isinstance(inputs, Iterable) and not is_one_source and not hasattr(inputs, "read")


def _is_kind(model: Any, *endings: str) -> bool:
    """By name, as an ensemble is no `HTSATPreTrainedModel`."""
    return any(name.endswith(endings) for name in class_names(model))


def _by_index(groups: Any, config: Any) -> dict[str, list[int]]:
    """The groups with an index for every class that has come by its label."""
    if not (isinstance(groups, Mapping) and groups):
        raise ValueError(f"`groups` is {groups!r}; it must be `{{name: [classes]}}` with a group at least.")
    indices = {}
    for name, classes in groups.items():
        known = f"name classes from 0 to {config.num_labels - 1}, or their labels"
        if isinstance(classes, str) or not isinstance(classes, Iterable):
            raise ValueError(f"Group {name!r} is {classes!r}, which is no list; {known}.")
        indices[name] = [config.label2id.get(one, one) if isinstance(one, str) else one for one in classes]
        are_known = [isinstance(one, int | np.integer) and 0 <= one < config.num_labels for one in indices[name]]
        if not are_known or not all(are_known):
            raise ValueError(f"Group {name!r} is {classes!r}; {known}.")
    return indices


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


__all__ = ["HTSATAudioClassificationPipeline", "HTSATSoundEventDetectionPipeline"]
