"""The feature extractor as a part of the graph: log-mel spectrograms of clips of one length.

Axes, as they appear in shape comments:
    samples         the waveform, 320,000 for ten seconds
    length          samples of one Fourier window, 1024
    half            samples of it that its mirror image does not repeat, and as many frequencies: 513
    frames, mels    the spectrogram, 1001 x 64 for ten seconds
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from ..feature_extraction_htsat import SILENCE_DECIBELS, HTSATFeatureExtractor


class LogMelFrontEnd(nn.Module):
    """What HTSATFeatureExtractor makes of clips of one length, in operations that every runtime has, and has fast.

    Of a real window x of N samples, cosines see only x[n] + x[N - n] and sines only x[n] - x[N - n]. So its spectrum is
    two products with tables of half the size: in onnxruntime half the time of a convolution with whole Fourier kernels,
    and a third of that of the operator STFT. In 32 bits they are as near to the truth as `torch.stft`.
    """

    def __init__(self, extractor: HTSATFeatureExtractor, num_samples: int):
        super().__init__()
        self.length, self.short_clips = extractor.window_length, extractor.short_clips
        self.num_frames = 1 + (num_samples + 2 * (self.length // 2) - self.length) // extractor.hop_length
        self.clip_frames = extractor.clip_frames
        # Windows overlap in whole pieces, so that a gather moves runs of samples, and not each one alone.
        self.piece = math.gcd(self.length, extractor.hop_length)
        first_piece = torch.arange(self.num_frames)[:, None] * (extractor.hop_length // self.piece)
        self.register_buffer("pieces", first_piece + torch.arange(self.length // self.piece))
        self.register_buffer("window", extractor.window)
        self.register_buffer("mel_filters", extractor.mel_filters.T.contiguous())  # (half, mels)
        position = torch.arange(self.length // 2 + 1)
        # Whole turns are taken off while the numbers are whole, or large angles would lose digits.
        angles = 2 * math.pi / self.length * (position[:, None] * position % self.length).double()
        self.register_buffer("cosines", angles.cos().float())
        self.register_buffer("sines", angles.sin().float())

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        windows = self._cut_windows(waveforms) * self.window  # (batch, frames, length)
        begin, end = windows.split([self.length // 2 + 1, (self.length - 1) // 2], dim=-1)
        mirrored = F.pad(end.flip(-1), (1, begin.shape[-1] - end.shape[-1] - 1))  # (batch, frames, half)
        power = ((begin + mirrored) @ self.cosines).square() + ((begin - mirrored) @ self.sines).square()
        decibels = 10 * (power @ self.mel_filters).clamp(min=1e-10).log10()  # (batch, frames, mels)
        return self._fit_short_clip(decibels)

    def _cut_windows(self, waveforms: torch.Tensor) -> torch.Tensor:
        """`(batch, frames, length)`: overlapping windows of the waveform, whose ends are mirrored."""
        half_window = self.length // 2
        mirrored = F.pad(waveforms[:, None], (half_window, half_window), mode="reflect")[:, 0]
        num_pieces = mirrored.shape[1] // self.piece
        pieces = mirrored[:, : num_pieces * self.piece].unflatten(1, (num_pieces, self.piece))
        return pieces[:, self.pieces].flatten(2)

    def _fit_short_clip(self, decibels: torch.Tensor) -> torch.Tensor:
        if self.short_clips == "repeat":
            return decibels.repeat(1, max(self.clip_frames // self.num_frames, 1), 1)
        if self.short_clips == "pad":
            missing = max(self.clip_frames - self.num_frames, 0)
            return F.pad(decibels, (0, 0, 0, missing), value=SILENCE_DECIBELS)
        return decibels
