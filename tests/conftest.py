"""Small models, made-up sounds and quiet surroundings: what every test file shares."""

import logging
import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported: no test needs a network
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import pytest
import torch
from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging as transformers_logging

from modeling_htsat import HTSATConfig, HTSATFeatureExtractor

torch.set_num_threads(1)  # tests are small, and share their machine
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell; what is tested needs Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
VERBOSITY = transformers_logging.get_verbosity()

# Four stages of 32, 16, 8 and 4 tokens a side under windows of 4: the first two have a shifted block, the last is one
# window. 256 frames a window, 2 folds, 2 bins x 8 steps, 5 classes.
SMALL = {
    "embed_dim": 8,
    "depths": (2, 2, 1, 1),
    "num_heads": (1, 2, 4, 8),
    "spec_size": 128,
    "window_size": 4,
    "num_labels": 5,
}
# The paper's geometry at a twelfth of its width: 1024 frames a window, 4 folds, 2 bins x 32 steps.
PAPER = {"embed_dim": 8, "depths": (2, 2, 2, 2), "num_heads": (1, 2, 4, 8), "num_labels": 5}


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state, in whatever order they run."""
    torch.manual_seed(20220523)


@pytest.fixture(autouse=True)
def talkative():
    """What commands silence for their own process is as it was for every test: defaults of Trainer depend on it."""
    _make_talkative()  # fixtures of whole modules call commands too
    yield
    _make_talkative()


def _make_talkative():
    transformers_logging.set_verbosity(VERBOSITY)
    transformers_logging.enable_progress_bar()
    logging.captureWarnings(False)
    logging.getLogger("modeling_htsat.pipeline_htsat").setLevel(logging.NOTSET)
    hub_logging.set_verbosity_warning()


@pytest.fixture
def make_config():
    """`make_config(num_labels=3, ...)`: the small configuration with other values; `paper=True` for 1024 frames."""

    def make(paper: bool = False, **values) -> HTSATConfig:
        return HTSATConfig(**{**(PAPER if paper else SMALL), **values})

    return make


def enliven(model: torch.nn.Module) -> torch.nn.Module:
    """Give every parameter and statistic a value of its own: fresh zeros and ones would hide what is left out."""
    generator = torch.Generator().manual_seed(7)

    def noise(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 1.0 if "bias_table" in name else 0.3 if parameter.ndim == 1 else parameter[0].numel() ** -0.5
            is_norm_weight = "norm.weight" in name
            parameter.copy_(noise(parameter) * scale + (1 if is_norm_weight else 0))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(noise(buffer) * 5 - 30)
            elif name.endswith("running_var"):
                buffer.copy_(noise(buffer).abs() * 50 + 200)
    return model


@pytest.fixture
def make_model(make_config):
    """`make_model(HTSATModel, drop_path_rate=0, ...)`: a small model in `eval()` whose every weight has a say."""

    def make(model_class: type, **values) -> torch.nn.Module:
        return enliven(model_class(make_config(**values))).eval()

    return make


@pytest.fixture
def make_features():
    """`make_features(3, 256)`: log-mel spectrograms in decibels, `(batch, frames, mels)`, different in every frame."""

    def make(batch: int, num_frames: int, num_mels: int = 64, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(batch, num_frames, num_mels, generator=generator) * 15 - 30

    return make


@pytest.fixture
def make_sound():
    """`make_sound(32000, seed=1)`: a float32 waveform of noise under a few tones, within [-1, 1]."""

    def make(num_samples: int, seed: int = 0) -> np.ndarray:
        generator = np.random.default_rng(seed)
        time = np.arange(num_samples) / 32_000
        tones = sum(0.1 * np.sin(2 * np.pi * hertz * time) for hertz in generator.uniform(60, 13_000, 3))
        return (tones + 0.1 * generator.standard_normal(num_samples)).clip(-0.99, 0.99).astype(np.float32)

    return make


@pytest.fixture
def extractor() -> HTSATFeatureExtractor:
    """The front end of the paper's model: 64 mels at 32 kHz, 1024 frames."""
    return HTSATFeatureExtractor()


@pytest.fixture
def small_extractor() -> HTSATFeatureExtractor:
    """The front end of the small model: 256 frames, two and a half seconds."""
    return HTSATFeatureExtractor(clip_frames=256)
