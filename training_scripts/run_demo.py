"""The whole way in some minutes: make soundscapes, train a small model on weak labels, score it, let it hear a new one.

    python training_scripts/run_demo.py --output demo_output

The model learns from clip labels alone which sounds occur, and is then asked when they do. The same command goes on
where it was interrupted.
"""

import argparse
import itertools
import os
import time
from pathlib import Path

import soundfile
import torch
from transformers import pipeline

from modeling_htsat import HTSATAudioClassificationPipeline, HTSATForSoundEventDetection
from modeling_htsat.cli import main as htsat
from modeling_htsat.soundscapes import make_soundscape
from modeling_htsat.tables import write_events
from modeling_htsat.training.reporting import format_results_table
from modeling_htsat.training.runs import parse_run, run_all

RECIPE = Path(__file__).parents[1] / "configuration" / "recipes" / "soundscapes.yaml"
SHOWN = ("test_mean_average_precision", "test_intersection_f1", "test_collar_f1", "test_segment_f1", "test_psds_1")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo_output"), help="folder for what the demo makes")
    parser.add_argument("--clips", type=int, default=1000, help="soundscapes to learn from; for tests an eighth")
    parser.add_argument("--seed", type=int, default=0, help="of the soundscapes, the weights and the training")
    options, recipe_flags = parser.parse_known_args()
    started, cores = time.monotonic(), os.cpu_count() or 1
    torch.set_num_threads(cores)

    print(f"1. Soundscapes: ten seconds each, thirteen classes of events over noise, made on {cores} cores")
    for split, count in (("train", options.clips), ("validation", options.clips // 8), ("test", options.clips // 8)):
        if not (options.output / "soundscapes" / split).exists():
            make = ["--num-clips", str(count), "--seed", str(options.seed), "--split-name", split]
            succeed(["soundscapes", str(options.output / "soundscapes" / split), *make])

    model = options.output / "htsat-nano-soundscapes"
    print(f"2. Training htsat-nano on their weak labels, by the recipe {RECIPE.name}")
    paths = ["--data", str(options.output / "soundscapes"), "--output_dir", str(model), "--seed", str(options.seed)]
    paths += ["--num_train_epochs", "10"]  # of the recipe's 16: a demo should be over in minutes
    scores = run_all(HTSATForSoundEventDetection, parse_run(["--recipe", str(RECIPE), *paths, *recipe_flags]))
    print("3. Scores on soundscapes that it has not heard:")
    print(format_results_table({name: scores[name] for name in SHOWN}))

    sound, truth = options.output / "new.flac", options.output / "new.tsv"
    make_new_soundscape(sound, truth, options.seed)
    tagger = pipeline(
        "audio-classification", str(model), pipeline_class=HTSATAudioClassificationPipeline, function_to_apply="sigmoid"
    )
    print(f"4. A new soundscape, {sound}: its tags")
    for tag in tagger(sound, top_k=4):
        print(f"   {tag['score']:.2f}  {tag['label']}")
    print("   its events, by the thresholds found on the validation clips")
    detect = ["detect", str(sound), "--model", str(model)]
    succeed(detect)
    picture = options.output / "new.png"
    succeed([*detect, "--plot", str(picture), "--truth", str(truth), "--output", str(options.output / "found.tsv")])
    print(f"5. Drawn beside the truth: {picture}. The model and its card: {model}")
    print(f"   {time.monotonic() - started:.0f} s in all")


def succeed(arguments: list[str]):
    if status := htsat(arguments):
        raise SystemExit(status)


def make_new_soundscape(sound: Path, truth: Path, seed: int):
    """One from a seed that no training clip comes from, with several events."""
    scenes = (make_soundscape(seed + 1_000_000, index) for index in itertools.count())
    scene = next(scene for scene in scenes if len(scene.events) >= 4)
    soundfile.write(sound, scene.waveform, 32_000, subtype="PCM_16")
    rows = [
        {"filename": sound.name, "onset": onset, "offset": offset, "event_label": label}
        for onset, offset, label in scene.events
    ]
    write_events(truth, rows)


if __name__ == "__main__":
    main()
