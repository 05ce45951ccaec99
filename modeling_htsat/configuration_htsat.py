"""Every number that decides what an HTS-AT model hears, how it is built and what its outputs mean."""

import numbers
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from .events_htsat import EventDecoding
from .hub_htsat import HTSATFilesMixin

# What decides the spectrogram of a waveform; the feature extractor has them too.
SPECTROGRAM_VALUES = (
    "sampling_rate",
    "window_length",
    "hop_length",
    "num_mel_bins",
    "min_frequency",
    "max_frequency",
)
# Where transformers finds the code that travels with a saved model, for whichever class is asked for.
AUTO_MAP = {
    "AutoConfig": "configuration_htsat.HTSATConfig",
    "AutoFeatureExtractor": "feature_extraction_htsat.HTSATFeatureExtractor",
    "AutoModel": "modeling_htsat.HTSATModel",
    "AutoModelForAudioClassification": "modeling_htsat.HTSATForAudioClassification",
    "AutoModelForAudioFrameClassification": "modeling_htsat.HTSATForSoundEventDetection",
}
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
# The largest values that make sense. What a damaged file asks for beyond them would fill the memory, or never end.
MAX_LABELS = 100_000
MAX_FREQUENCY = 1e6
LARGEST = {
    "sampling_rate": 384_000,
    "window_length": 2**16,
    "hop_length": 2**16,
    "num_mel_bins": 2**10,
    "clip_frames": 2**20,
    "frames_per_step": 2**20,
    "spec_size": 2**12,
    "patch_size": 2**12,
    "patch_stride": 2**12,
    "embed_dim": 2**14,
    "window_size": 2**6,
    "windows_per_pass": 2**20,
}
MAX_BLOCKS, MAX_MLP_RATIO, MAX_OVERLAPPING_WINDOWS = 1_000, 1_000, 1_024
CLIP_POOLINGS = ("mean", "linear_softmax")


@strict
class HTSATConfig(HTSATFilesMixin, PreTrainedConfig):
    """Configuration of [`HTSATModel`], [`HTSATForAudioClassification`] and [`HTSATForSoundEventDetection`].

    The defaults are the paper's 31-million-parameter model for sound at 32 kHz. The number of classes comes with
    `id2label` (or `num_labels`), as everywhere in transformers.

    The front end (the same values stand in the feature extractor's own file):
        sampling_rate: samples per second of the waveforms that the model was trained on.
        window_length: samples of one Fourier window.
        hop_length: samples between two frames of the spectrogram.
        num_mel_bins: mel bands of the spectrogram.
        min_frequency, max_frequency: the lowest and highest frequency of the mel bands, in hertz.

    The image that the spectrogram is folded into:
        spec_size: its height and width. `spec_size / num_mel_bins` chunks of `spec_size` frames are stacked along
            frequency, so 256 hears 1024 frames (ten seconds) at once and 128 hears 256 frames at a quarter of the cost.
        patch_size, patch_stride: the square cut out for one token, and the step between two of them.

    The encoder:
        embed_dim: numbers per token in the first stage; doubles from stage to stage.
        depths, num_heads: blocks and attention heads of each stage.
        window_size: tokens along one side of an attention window, a power of two.
        mlp_ratio: hidden width of a block's MLP, as a multiple of its tokens' width.
        qkv_bias: whether queries, keys and values have a bias.
        hidden_act: activation of the MLP.
        drop_path_rate: stochastic depth of the last block; it grows linearly from 0 in the first one.
        hidden_dropout_prob, attention_probs_dropout_prob: ordinary dropout; the paper uses none.
        layer_norm_eps, initializer_range: as elsewhere in transformers.

    The head and the long recordings:
        token_semantic_head: True for the paper's head that scores every time step (HC, HCP); False for a linear layer
            on the mean token (its variant H).
        clip_pooling: how the scores of the steps make the clip's: `mean` is the paper's, the mean of logits;
            `linear_softmax` is the mean of probabilities weighted by themselves, so that the steps that hear a sound
            decide, and labels of whole clips teach when.
        window_overlap: share of a window that the next one hears again, in recordings longer than one: at most half.
        windows_per_pass: how many windows of a long recording are encoded at once: bounds the memory.

    From scores to events:
        event_decoding: thresholds and filters as `EventDecoding.to_dict` writes them, found by `tune_event_decoding`;
            None decodes with a threshold of 0.5.
    """

    model_type = "htsat"
    _auto_class = "AutoConfig"  # what is saved takes its code along
    # Trainer gathers every other output over all ranks and keeps it until the end of an evaluation.
    keys_to_ignore_at_inference = ["last_hidden_state", "pooler_output", "step_mask", "hidden_states", "attentions"]

    sampling_rate: int = 32000
    window_length: int = 1024
    hop_length: int = 320
    num_mel_bins: int = 64
    min_frequency: float | int = 50.0
    max_frequency: float | int = 14000.0

    spec_size: int = 256
    patch_size: int = 4
    patch_stride: int = 4

    embed_dim: int = 96
    depths: list[int] | tuple[int, ...] = (2, 2, 6, 2)
    num_heads: list[int] | tuple[int, ...] = (4, 8, 16, 32)
    window_size: int = 8
    mlp_ratio: float | int = 4.0
    qkv_bias: bool = True
    hidden_act: str = "gelu"
    drop_path_rate: float | int = 0.1
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    layer_norm_eps: float | int = 1e-5
    initializer_range: float | int = 0.02

    token_semantic_head: bool = True
    clip_pooling: str = "mean"
    window_overlap: float | int = 0.125
    windows_per_pass: int = 8

    event_decoding: dict | None = None
    problem_type: str | None = None  # as everywhere; declared here so that `validate_labels` is the one to complain

    def __post_init__(self, **kwargs):
        self._check_labels_given(kwargs.get("num_labels"))
        super().__post_init__(**kwargs)
        # transformers leaves `label2id` empty when only `id2label` is given; pipelines and Trainer read both.
        if self.label2id is None and self.id2label is not None:
            self.label2id = {label: index for index, label in self.id2label.items()}

    def _check_labels_given(self, num_labels: Any):
        """What transformers takes for granted before any check of `@strict`."""
        is_count = num_labels is None or (isinstance(num_labels, int) and 0 <= num_labels <= MAX_LABELS)
        if not is_count or (self.id2label is not None and len(_by_number(self.id2label)) > MAX_LABELS):
            raise ValueError(f"`num_labels` must be a whole number up to {MAX_LABELS}.")
        if self.label2id is not None and not isinstance(self.label2id, Mapping):
            raise ValueError("`label2id` must give the number of every label: {'dog': 0, ...}.")
        dtype_name = str(self.dtype).removeprefix("torch.")
        if self.dtype is not None and not isinstance(getattr(torch, dtype_name, None), torch.dtype):
            raise ValueError(f"`dtype` is {self.dtype!r}; it must be the name of a type of torch, such as 'float32'.")

    def save_pretrained(self, save_directory: Any, *args: Any, **kwargs: Any):
        """As everywhere, with an entry for every Auto class, whichever class is saved."""
        self.auto_map = {**AUTO_MAP, **(getattr(self, "auto_map", None) or {})}
        return super().save_pretrained(save_directory, *args, **kwargs)

    @classmethod
    def _dict_from_json_file(cls, json_file: Any) -> dict:
        """As everywhere, but a file with something else in it than a table is refused by its name."""
        try:
            values = super()._dict_from_json_file(json_file)
        except RecursionError as error:
            raise OSError(f"The config file at '{json_file}' has too many brackets in brackets to be read.") from error
        if not isinstance(values, dict):
            raise OSError(f"The config file at '{json_file}' holds a {type(values).__name__}, and no values by name.")
        return values

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs):
        """As everywhere, but values given at loading are checked too, and `id2label` alone renames the labels."""
        if not isinstance(config_dict, Mapping):
            raise ValueError(f"A configuration is a table of values by name; this is a {type(config_dict).__name__}.")
        if kwargs.get("id2label") is not None:
            id2label = _by_number(kwargs["id2label"])
            if kwargs.get("num_labels", len(id2label)) != len(id2label):
                raise ValueError(
                    f"`num_labels` is {kwargs['num_labels']}, and `id2label` names {len(id2label)} labels."
                )
            label2id = kwargs.get("label2id") or {label: index for index, label in id2label.items()}
            kwargs |= {"id2label": id2label, "label2id": label2id}
        if cls._renames_labels(config_dict, kwargs):
            config_dict = {**config_dict, "event_decoding": None}  # it was tuned for other labels
        try:
            loaded = super().from_dict(config_dict, **kwargs)
        except RecursionError as error:
            raise ValueError("This configuration has too many brackets in brackets to be read.") from error
        (loaded[0] if isinstance(loaded, tuple) else loaded).validate()
        return loaded

    @staticmethod
    def _renames_labels(config_dict: dict, given: dict) -> bool:
        before = _by_number(config_dict.get("id2label") or {})
        if given.get("id2label") is not None:
            return given["id2label"] != before
        return given.get("num_labels", len(before)) != len(before)

    # ── derived sizes ──────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def front_end(self) -> dict[str, Any]:
        """What a feature extractor is told, to hear as this model does."""
        return {name: getattr(self, name) for name in (*SPECTROGRAM_VALUES, "clip_frames", "frames_per_step")}

    @property
    def num_folds(self) -> int:
        """Time chunks stacked along frequency to make the image square."""
        return self.spec_size // self.num_mel_bins

    @property
    def clip_frames(self) -> int:
        """Frames that one window hears: 1024 for the paper's model."""
        return self.spec_size * self.num_folds

    @property
    def stage_grids(self) -> list[int]:
        """Tokens along one side of the image, for every stage."""
        return [self.spec_size // self.patch_stride // 2**stage for stage in range(len(self.depths))]

    @property
    def stage_windows(self) -> list[int]:
        """Tokens along one side of an attention window, for every stage: a small image is a single window."""
        return [min(self.window_size, grid) for grid in self.stage_grids]

    @property
    def stage_dims(self) -> list[int]:
        return [self.embed_dim * 2**stage for stage in range(len(self.depths))]

    @property
    def hidden_size(self) -> int:
        """Numbers per token in the last stage, and in the pooled embedding."""
        return self.stage_dims[-1]

    @property
    def num_bins(self) -> int:
        """Frequency bins of the last stage, once its folds are put back one after the other."""
        return self.stage_grids[-1] // self.num_folds

    @property
    def num_steps(self) -> int:
        """Time steps of one window: 32 for the paper's model."""
        return self.stage_grids[-1] * self.num_folds

    @property
    def frames_per_step(self) -> int:
        return self.clip_frames // self.num_steps

    @property
    def overlap_steps(self) -> int:
        """Steps that two neighbouring windows of a long recording share."""
        return round(self.num_steps * self.window_overlap)

    def seconds_per_step(self, num_frames: int) -> float:
        """Seconds that one time step of the outputs covers, for a spectrogram of `num_frames` frames.

        Up to one window (1024 frames) a spectrogram is stretched to the window, so its duration is cut into 32 equal
        steps: 312.5 ms for the 1001 frames of ten seconds. A longer one is not stretched: 32 frames, 320 ms.
        """
        seconds_per_frame = self.hop_length / self.sampling_rate
        if num_frames > self.clip_frames:
            return self.frames_per_step * seconds_per_frame
        # `center=True` puts a frame on both ends: 1001 frames have 1000 hops between them.
        return max(num_frames - 1, 1) * seconds_per_frame / self.num_steps

    def num_steps_of(self, num_frames: int) -> int:
        """Time steps of the outputs for a spectrogram of `num_frames` frames: 32 up to one window, then one per 32."""
        return self.num_steps + max(0, -(-(num_frames - self.clip_frames) // self.frames_per_step))

    def step_edges(self, num_frames: int) -> list[float]:
        """Where the time steps of the outputs begin and end, in seconds: one edge more than there are steps."""
        step = self.seconds_per_step(num_frames)
        return [index * step for index in range(self.num_steps_of(num_frames) + 1)]

    # ── checks ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def validate_front_end(self):
        """Part of `@strict`: the spectrogram."""
        for name in LARGEST:
            if name not in ("clip_frames", "frames_per_step"):  # which follow from the others
                check_size(name, getattr(self, name))
        check_frequencies(self.min_frequency, self.max_frequency)
        if self.hop_length > self.window_length:
            raise ValueError(
                f"`hop_length` ({self.hop_length}) is longer than `window_length` ({self.window_length}), so some "
                "samples would never be heard. Choose a hop of at most one window."
            )
        check_hop(self.hop_length, self.window_length)

    def validate_architecture(self):
        """Part of `@strict`: the image, the stages, and what must divide what."""
        super().validate_architecture()
        self.validate_front_end()  # its turn may come later, and what follows divides by its sizes
        self._check_image()
        self._check_stages()
        self._check_rates()
        self._check_pooling()

    def validate_labels(self):
        """Part of `@strict`: labels and the loss that they ask for."""
        if self.problem_type is not None and self.problem_type not in PROBLEM_TYPES:
            raise ValueError(
                f"`problem_type` is {self.problem_type!r}; it must be one of {', '.join(PROBLEM_TYPES)}, or None to "
                "follow the labels' shape and type."
            )
        if not self.id2label or self.label2id is None:
            raise ValueError("`id2label` names no label; a model needs at least one label.")
        if sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"`id2label` must number its {len(self.id2label)} labels from 0 upwards, without a gap.")
        twice = [label for label, count in Counter(self.id2label.values()).items() if count > 1]
        if twice:
            raise ValueError(f"`id2label` names {twice[0]!r} twice; every label needs one index of its own.")
        if {str(index): label for label, index in self.label2id.items()} != {
            str(index): label for index, label in self.id2label.items()
        }:
            raise ValueError(
                "`id2label` and `label2id` do not say the same. "
                "Build the second from the first: {label: index for index, label in id2label.items()}."
            )

    def validate_event_decoding(self):
        """Part of `@strict`: the values that scores are decoded with."""
        if self.event_decoding is not None:
            EventDecoding.from_dict(self.event_decoding)

    def _check_image(self):
        if self.spec_size % self.num_mel_bins:
            raise ValueError(
                f"`spec_size` ({self.spec_size}) must be a multiple of `num_mel_bins` ({self.num_mel_bins}): the image "
                "is made of whole chunks of the spectrogram stacked along frequency."
            )
        if self.patch_size < self.patch_stride or (self.patch_size - self.patch_stride) % 2:
            raise ValueError(
                f"`patch_size` ({self.patch_size}) must be `patch_stride` ({self.patch_stride}) plus an even number, "
                "so that patches cover the image evenly."
            )
        if self.window_size & (self.window_size - 1) or self.window_size < 2:
            raise ValueError(f"`window_size` is {self.window_size}; it must be a power of two, from 2 upwards.")

    def _check_stages(self):
        if not self.depths or len(self.depths) != len(self.num_heads):
            raise ValueError(
                f"`depths` {tuple(self.depths)} and `num_heads` {tuple(self.num_heads)} must name the same stages, at "
                "least one."
            )
        if min(*self.depths, *self.num_heads, 1) < 1:
            raise ValueError(f"`depths` {tuple(self.depths)} and `num_heads` {tuple(self.num_heads)} must be positive.")
        if sum(self.depths) > MAX_BLOCKS:
            raise ValueError(f"`depths` ask for {sum(self.depths)} blocks; at most {MAX_BLOCKS} are possible.")
        shrink = self.patch_stride * 2 ** (len(self.depths) - 1)
        if self.spec_size % (shrink * self.num_folds) or self.spec_size < shrink * self.num_folds:
            raise ValueError(
                f"`spec_size` ({self.spec_size}) must be a multiple of {shrink * self.num_folds}: `patch_stride` "
                f"({self.patch_stride}) x 2 for every merge of {len(self.depths)} stages x {self.num_folds} folds, so "
                "that every fold keeps at least one frequency bin in the last stage."
            )
        for stage, (grid, dim, heads) in enumerate(zip(self.stage_grids, self.stage_dims, self.num_heads, strict=True)):
            self._check_stage(stage, grid, dim, heads)

    def _check_stage(self, stage: int, grid: int, dim: int, heads: int):
        if grid > self.window_size and grid % self.window_size:
            raise ValueError(
                f"Stage {stage} has {grid} x {grid} tokens, which windows of `window_size` {self.window_size} do not "
                f"tile. Choose `spec_size` ({self.spec_size}), `patch_stride` ({self.patch_stride}) or `window_size` "
                "so that every stage is a multiple of the window, or fits inside one."
            )
        if grid < self.window_size and grid & (grid - 1):
            raise ValueError(f"Stage {stage} has {grid} x {grid} tokens; below one window, a power of two is needed.")
        if dim % heads:
            raise ValueError(
                f"Stage {stage} has tokens of {dim} numbers (`embed_dim` {self.embed_dim} doubled {stage} times), "
                f"which {heads} heads do not divide. Change `embed_dim` or `num_heads` {tuple(self.num_heads)}."
            )

    def _check_rates(self):
        if not 0 <= self.window_overlap <= 0.5:
            raise ValueError(f"`window_overlap` is {self.window_overlap}; it must be from 0 to 0.5.")
        for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 0 and below 1.")
        if not 0 < self.mlp_ratio <= MAX_MLP_RATIO:
            raise ValueError(f"`mlp_ratio` is {self.mlp_ratio}; it must be positive, and at most {MAX_MLP_RATIO}.")
        for name in ("layer_norm_eps", "initializer_range"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; it must be at least 0 and below 1.")
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"`hidden_act` is {self.hidden_act!r}; transformers knows {', '.join(ACT2FN)}.")

    def _check_pooling(self):
        if self.clip_pooling not in CLIP_POOLINGS:
            raise ValueError(f"`clip_pooling` is {self.clip_pooling!r}; it must be one of {', '.join(CLIP_POOLINGS)}.")
        if self.clip_pooling != "mean" and not self.token_semantic_head:
            raise ValueError(
                f"`clip_pooling` is {self.clip_pooling!r}, which pools the scores of steps; the linear head scores the "
                "mean token. Set `token_semantic_head=True`, or `clip_pooling='mean'`."
            )


def check_size(name: str, size: Any):
    """Whether a size is one: of the front end, which the feature extractor has too, or of the model."""
    if not isinstance(size, numbers.Integral) or isinstance(size, bool):
        raise ValueError(f"`{name}` is {size!r}; it must be a whole number.")
    if int(size) < 1:
        raise ValueError(f"`{name}` is {size}; it must be at least 1.")
    if int(size) > LARGEST[name]:
        raise ValueError(f"`{name}` is larger than {LARGEST[name]}, the largest that is possible.")


def check_frequencies(lowest: Any, highest: Any):
    are_numbers = all(isinstance(number, numbers.Real) for number in (lowest, highest))
    if not are_numbers or not 0 <= lowest < highest <= MAX_FREQUENCY:
        raise ValueError(
            f"`min_frequency` ({lowest}) and `max_frequency` ({highest}) must be ordered: "
            f"0 <= min_frequency < max_frequency, in hertz, up to {MAX_FREQUENCY:.0f}."
        )


def check_hop(hop_length: int, window_length: int):
    """A hop may be longer than a window in a feature extractor, but not so short that there is no end of windows."""
    if window_length < 2 or hop_length * MAX_OVERLAPPING_WINDOWS < window_length:
        raise ValueError(
            f"`window_length` is {window_length} and `hop_length` {hop_length}; a window has 2 samples or more, and at "
            f"most {MAX_OVERLAPPING_WINDOWS} windows may overlap."
        )


def _by_number(id2label: Any) -> dict[int, str]:
    """Labels by number, which JSON writes as text."""
    needed = "`id2label` must give a text for every number, each once: {0: 'dog', 1: 'cat', ...}."
    try:
        labels = {int(index): label for index, label in id2label.items()}
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(needed) from error
    if len(labels) != len(id2label) or not all(isinstance(label, str) for label in labels.values()):
        raise ValueError(needed)
    return labels


__all__ = ["HTSATConfig"]
