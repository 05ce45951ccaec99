"""The whole way in half a minute: convert an authors' checkpoint, tag a sound, find its events, draw them.

    python training_scripts/run_demo.py --output demo_output

No trained weights travel with this project, so the checkpoint is made of seeded random numbers: its labels mean
nothing, and everything around them is what a real one would go through.
"""

import argparse
from pathlib import Path

import numpy as np
import soundfile
import torch
from transformers import pipeline

from modeling_htsat.cli import main as htsat

DIM, DEPTHS, HEADS, CLASSES = 32, (2, 2, 2, 2), (2, 4, 8, 16), 10


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for what the demo makes")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of the sound")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)

    sound = options.output / "sound.wav"
    make_sound(sound, options.seed)
    print(f"1. A sound of ten seconds, 44.1 kHz stereo: {sound}")

    model = options.output / f"model-{options.seed}"
    if not model.exists():
        convert_seeded_checkpoint(model, options.seed)
    print(f"2. A model folder, converted from a checkpoint in the authors' layout (random weights): {model}")

    print("3. Its tags (the labels mean nothing here):")
    succeed(["classify", str(sound), "--model", str(model), "--top-k", "3"])

    detector = pipeline("sound-event-detection", model=str(model))
    scores = detector(str(sound), return_scores=True)["scores"]
    threshold = float(np.quantile(scores, 0.93))
    print(f"4. Its events above {threshold:.3f}, a score that one in fourteen exceeds here:")
    detect = ["detect", str(sound), "--model", str(model), "--threshold", str(threshold)]
    succeed(detect)

    picture, table = options.output / "events.png", options.output / "events.tsv"
    succeed([*detect, "--plot", str(picture), "--output", str(table)])
    print(f"5. The same as a picture and as a table: {picture}, {table}")


def succeed(arguments: list[str]):
    if status := htsat(arguments):
        raise SystemExit(status)


def make_sound(path: Path, seed: int, rate: int = 44100):
    """A low tone, a burst of noise, a rising chirp and clicks over faint noise, wandering from left to right."""
    random = np.random.default_rng(seed)
    time = np.arange(10 * rate) / rate
    sound = 0.003 * random.standard_normal(len(time))
    sound += 0.3 * np.sin(2 * np.pi * 220 * time) * ((time > 0.8) & (time < 2.6))
    sound += 0.2 * random.standard_normal(len(time)) * ((time > 3.4) & (time < 4.4))
    sound += 0.3 * np.sin(2 * np.pi * (500 + 700 * (time - 5)) * (time - 5)) * ((time > 5) & (time < 7.5))
    sound += 0.6 * ((time * 8 % 1 < 0.01) & (time > 8.2) & (time < 9.4))
    right = time / time[-1]
    soundfile.write(path, np.clip(np.stack([sound * (1 - right), sound * right], axis=1), -1, 1), rate)


def convert_seeded_checkpoint(model: Path, seed: int):
    """Write random weights as the authors' code saves them, and turn them into a folder that transformers loads."""
    random = torch.Generator().manual_seed(seed)
    checkpoint, labels = model.parent / "authors.ckpt", model.parent / "labels.txt"
    state = {f"sed_model.{key}": tensor for key, tensor in authors_state(random).items()}
    torch.save({"epoch": 0, "global_step": 0, "state_dict": state}, checkpoint)
    labels.write_text("".join(f"class {index}\n" for index in range(CLASSES)), encoding="utf-8")
    succeed(["convert", str(checkpoint), str(model), "--labels", str(labels)])


def authors_state(random: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights under the names of the authors' code."""

    def linear(name: str, outputs: int, *inputs: int, bias: bool = True) -> dict[str, torch.Tensor]:
        fan_in = int(np.prod(inputs))
        weight = torch.randn(outputs, *inputs, generator=random) / fan_in**0.5
        return {f"{name}.weight": weight} | ({f"{name}.bias": torch.zeros(outputs)} if bias else {})

    def norm(name: str, width: int) -> dict[str, torch.Tensor]:
        return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}

    statistics = {"running_mean": -30.0, "running_var": 400.0}
    state = norm("bn0", 64) | {f"bn0.{name}": torch.full((64,), value) for name, value in statistics.items()}
    state |= linear("patch_embed.proj", DIM, 1, 4, 4) | norm("patch_embed.norm", DIM)
    for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
        width = DIM * 2**stage
        for block in range(depth):
            name = f"layers.{stage}.blocks.{block}"
            state[f"{name}.attn.relative_position_bias_table"] = torch.randn(15 * 15, heads, generator=random)
            state |= norm(f"{name}.norm1", width) | norm(f"{name}.norm2", width)
            state |= linear(f"{name}.attn.qkv", 3 * width, width) | linear(f"{name}.attn.proj", width, width)
            state |= linear(f"{name}.mlp.fc1", 4 * width, width) | linear(f"{name}.mlp.fc2", width, 4 * width)
        if stage < len(DEPTHS) - 1:
            state |= norm(f"layers.{stage}.downsample.norm", 4 * width)
            state |= linear(f"layers.{stage}.downsample.reduction", 2 * width, 4 * width, bias=False)
    state |= norm("norm", width) | linear("tscam_conv", CLASSES, width, 2, 3) | linear("head", CLASSES, CLASSES)
    return state


if __name__ == "__main__":
    main()
