"""Who runs: ours and its peers, with the same weights and the same sound wherever they compute the same."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification, ClapFeatureExtractor

from modeling_htsat import HTSATConfig, HTSATFeatureExtractor, HTSATForAudioClassification, HTSATModel
from modeling_htsat.conversion import clap_from_htsat
from modeling_htsat.processor_htsat import ONEDNN_IS_FAST, OneDNNLinear

from .clock import Pace

ROOT = Path(__file__).parents[2]
PRESET = ROOT / "configuration" / "models" / "htsat-tiny-audioset"
CLAP, AST, TORCHLIBROSA, FLOOR = "ClapAudioModel", "ASTForAudioClassification", "torchlibrosa", "floor"
CLIP_SECONDS = 10
FrontEnd = Callable[[list[np.ndarray]], torch.Tensor]


@dataclass
class Scale:
    """What is measured, and how long it may take. `quick()` is a smoke run of seconds, whose figures say nothing."""

    config: HTSATConfig
    ast_config: ASTConfig
    threads: tuple[int, ...] = (1, 2)
    batches: tuple[int, ...] = (1, 4, 16)
    memory_batches: tuple[int, ...] = (1, 4, 16)
    most_ast_clips: int = 4  # 16 take it half a minute on one thread, of each round
    pace: Pace = field(default_factory=lambda: Pace(6))
    product_size: int = 2048
    recordings: dict[str, int] = field(
        default_factory=lambda: {"10 s": 10, "1 min": 60, "10 min": 600, "1 h": 3600}  # names to seconds
    )
    gpu_batches: tuple[int, ...] = tuple(4**power for power in range(8))
    is_quick: bool = False

    @staticmethod
    def full() -> "Scale":
        return Scale(HTSATConfig.from_pretrained(PRESET), ASTConfig(num_labels=527))

    @staticmethod
    def quick() -> "Scale":
        return Scale(
            HTSATConfig(embed_dim=8, depths=(1, 2), num_heads=(1, 2), num_labels=5),
            ASTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=5),
            threads=(1,),
            batches=(1, 2),
            memory_batches=(1,),
            most_ast_clips=1,
            pace=Pace(0, fewest_rounds=2),
            product_size=64,
            recordings={"10 s": 10, "20 s": 20},
            gpu_batches=(1, 2),
            is_quick=True,
        )


def make_sounds(batch: int, sampling_rate: int) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    shape = (batch, CLIP_SECONDS * sampling_rate)
    return list((0.1 * generator.standard_normal(shape)).astype(np.float32))


# ── front ends: from waveforms to (batch, frames, mels) ───────────────────────────────────────────────────────────────


def make_torchlibrosa(config: HTSATConfig) -> nn.Module | None:
    """The authors' front end, or None where `pip install torchlibrosa` is still to be done."""
    try:
        from torchlibrosa.stft import LogmelFilterBank, Spectrogram
    except ImportError:
        return None
    rate, length = config.sampling_rate, config.window_length
    low, high = config.min_frequency, config.max_frequency
    return nn.Sequential(
        Spectrogram(n_fft=length, hop_length=config.hop_length),
        LogmelFilterBank(
            sr=rate, n_fft=length, n_mels=config.num_mel_bins, fmin=low, fmax=high, ref=1.0, amin=1e-10, top_db=None
        ),
    ).eval()


def make_clap_extractor(config: HTSATConfig) -> ClapFeatureExtractor:
    return ClapFeatureExtractor(
        feature_size=config.num_mel_bins,
        sampling_rate=config.sampling_rate,
        hop_length=config.hop_length,
        fft_window_size=config.window_length,
        frequency_min=config.min_frequency,
        frequency_max=config.max_frequency,
        max_length_s=CLIP_SECONDS,
        truncation="rand_trunc",  # what goes with Slaney filters, as HTS-AT's
    )


def make_front_ends(config: HTSATConfig) -> dict[str, FrontEnd]:
    """Those that are installed."""
    rate = config.sampling_rate
    ours, clap = HTSATFeatureExtractor(**config.front_end), make_clap_extractor(config)
    torchlibrosa = make_torchlibrosa(config)

    def clap_hears(sounds: list[np.ndarray]) -> torch.Tensor:
        return clap(sounds, sampling_rate=rate, return_tensors="pt")["input_features"][:, 0].float()

    ends: dict[str, FrontEnd] = {
        "ours": lambda sounds: ours(sounds, rate, return_tensors="pt")["input_features"],
        "ClapFeatureExtractor": clap_hears,
    }
    if torchlibrosa:
        ends[TORCHLIBROSA] = lambda sounds: torchlibrosa(torch.from_numpy(np.stack(sounds)))[:, 0]
    return ends


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def make_encoder(config: HTSATConfig) -> HTSATModel:
    torch.manual_seed(0)
    return HTSATModel(config).eval()


class ClapEncoder(nn.Module):
    """`ClapAudioModel` with the weights of ours, called as ours is."""

    def __init__(self, encoder: HTSATModel):
        super().__init__()
        self.tower = clap_from_htsat(encoder)

    def forward(self, features: torch.Tensor) -> Any:
        return self.tower(input_features=features[:, None])


def make_ast(config: ASTConfig) -> tuple[ASTFeatureExtractor, ASTForAudioClassification]:
    torch.manual_seed(0)
    return ASTFeatureExtractor(), ASTForAudioClassification(config).eval()


def make_classifier(encoder: HTSATModel) -> HTSATForAudioClassification:
    model = HTSATForAudioClassification(encoder.config).eval()
    model.htsat = encoder
    return model


class Trainee:
    """A model in training: an encoder with a linear head, binary cross-entropy and AdamW, for ours and for CLAP's."""

    def __init__(self, name: str, config: HTSATConfig, device: str = "cpu", dtype: torch.dtype = torch.float32):
        encoder = make_encoder(config)
        if "plain attention" in name:
            encoder.set_attn_implementation("eager")
        if "checkpointing" in name:
            encoder.gradient_checkpointing_enable()
        self.encoder = (ClapEncoder(encoder) if CLAP in name else encoder).to(device).train()
        self.head = nn.Linear(config.hidden_size, config.num_labels, device=device)
        self.optimizer = torch.optim.AdamW([*self.encoder.parameters(), *self.head.parameters()], fused=True)
        self.forward = torch.compile(self.loss) if "compiled" in name else self.loss
        self.dtype = dtype

    def loss(self, features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(self.head(self.encoder(features).pooler_output), targets)

    def step(self, features: torch.Tensor, targets: torch.Tensor):
        with torch.autocast(features.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.forward(features, targets)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def gradient_of_sound(trainee: Trainee, features: torch.Tensor) -> torch.Tensor:
    """What backward computes down to the spectrogram, without the dice of training: equal for equal models."""
    trainee.encoder.eval()
    features = features.clone().requires_grad_()
    # Every other number: all of them sum up to nothing, as the last layer normalises.
    (gradient,) = torch.autograd.grad(trainee.encoder(features).pooler_output[:, ::2].sum(), features)
    trainee.encoder.train()
    return gradient / gradient.abs().max()


# ── the floor ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@cache
def floor_products(size: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, Callable]:
    """One large product of matrices, by each library that PyTorch has for it.

    On a CPU, PyTorch gives products to MKL, and its compiler linear layers to oneDNN, which on processors other than
    Intel's is up to twice as fast.
    """
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    products = {"torch.mm": lambda: left @ right}
    if device == "cpu" and ONEDNN_IS_FAST:
        products["oneDNN"] = lambda: OneDNNLinear.apply(left, right, None)
    return products


def floor_flops(size: int) -> int:
    return 2 * size**3


def count_flops(encoder: HTSATModel, features: torch.Tensor) -> int:
    """Of one forward pass. In plain products, as the counter does not know every fused kernel."""
    plain = copy.deepcopy(encoder)
    plain.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain(features)
    return counter.get_total_flops()
