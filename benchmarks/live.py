"""How late, and at what cost, a live detector finds events: `python benchmarks/live.py [--seconds 120] [--threads 2]`.

Random weights cost what trained ones do; only the number of events differs. Sound comes in blocks of 20 ms, 48 kHz
stereo, as a sound card gives it. Most calls to `feed` only keep the samples; every 9 s of sound one encodes a window.
"""

import argparse
import platform
import time
from collections.abc import Iterator

import numpy as np
import torch

from modeling_htsat import EventDecoding, HTSATConfig, HTSATFeatureExtractor, HTSATForSoundEventDetection
from modeling_htsat.live import LiveDetector

SAMPLING_RATE, BLOCK_SAMPLES = 48_000, 960
MODELS = {
    "small": {"embed_dim": 8, "depths": (2, 2, 1, 1), "num_heads": (1, 2, 4, 8), "num_labels": 10},
    "paper": {"num_labels": 527},
}
DECODINGS = {
    "threshold": EventDecoding(),
    "threshold, hysteresis, median 1 s, gaps 0.5 s": EventDecoding(0.5, 0.4, 1.0, 0.5),
}


def make_blocks(seconds: float) -> Iterator[np.ndarray]:
    generator = np.random.default_rng(0)
    for _ in range(int(seconds * SAMPLING_RATE / BLOCK_SAMPLES)):
        yield generator.standard_normal((BLOCK_SAMPLES, 2)).astype(np.float32) * 0.1


def measure(detector: LiveDetector, seconds: float) -> dict[str, str]:
    """Feed a detector, and say how it kept up."""
    call_seconds = []
    for block in make_blocks(seconds):
        begin = time.perf_counter()
        detector.feed(block)
        call_seconds.append(time.perf_counter() - begin)
    statistics = detector.statistics  # before the preview, which nobody has to ask for
    begin = time.perf_counter()
    detector.preview()
    preview_seconds = time.perf_counter() - begin
    return {
        "real-time factor": f"{statistics.real_time_factor:.4f}",
        "look-ahead": f"{detector.look_ahead_seconds:.2f} s",
        "decisions lag": f"{statistics.lag_seconds:.2f} s",
        "feed, median": f"{1e3 * np.median(call_seconds):.2f} ms",
        "feed, slowest": f"{1e3 * statistics.slowest_call_seconds:.0f} ms",
        "preview": f"{1e3 * preview_seconds:.0f} ms",
        "windows": str(statistics.num_windows),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of sound to feed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.machine()}, {arguments.threads} threads, {arguments.device}, PyTorch {torch.__version__}")
    for name, values in MODELS.items():
        torch.manual_seed(0)
        model = HTSATForSoundEventDetection(HTSATConfig(**values)).to(arguments.device)
        for decoding_name, decoding in DECODINGS.items():
            detector = LiveDetector(model, HTSATFeatureExtractor(), sampling_rate=SAMPLING_RATE, decoding=decoding)
            measure(detector, 12.0)  # the first window of a process also pays for what PyTorch sets up
            detector.reset()
            found = measure(detector, arguments.seconds)
            print(f"{name}, {model.num_parameters() / 1e6:.2f} M parameters, {decoding_name}")
            print("    " + " · ".join(f"{key} {value}" for key, value in found.items()))


if __name__ == "__main__":
    main()
