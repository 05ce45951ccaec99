"""Does shifting a clip place events more finely? `python benchmarks/time_refinement.py [--output results.json]`

Trains the nano preset on synthetic soundscapes with strong labels, tunes its decoding on a validation set for every
number of shifted passes, and scores the events of held-out clips. The passes of one model are compared, so training
longer moves all rows together. Takes about a quarter of an hour on two cores.
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, Trainer, TrainingArguments, pipeline

from modeling_htsat import HTSATFeatureExtractor, HTSATForSoundEventDetection, decode_events, events_to_frames
from modeling_htsat.event_tuning import tune_event_decoding
from modeling_htsat.metrics import collar_f1, intersection_f1, psds
from modeling_htsat.soundscapes import SoundscapeSettings, make_soundscape, soundscape_labels

PRESET = Path(__file__).parents[1] / "configuration" / "models" / "htsat-nano"
CLIP_SECONDS = 10.0
REFINEMENTS = (1, 2, 3, 4)


def make_clips(split: str, num_clips: int) -> dict:
    settings = SoundscapeSettings(split_name=split, clip_seconds=CLIP_SECONDS)
    return {f"{split}-{index}": make_soundscape(0, index, settings) for index in range(num_clips)}


class StrongLabels(torch.utils.data.Dataset):
    """Log-mel spectrograms with one target per time step, made once."""

    def __init__(self, clips: dict, extractor: HTSATFeatureExtractor, num_steps: int):
        self.rows = []
        for clip in clips.values():
            features = extractor(clip.waveform, sampling_rate=extractor.sampling_rate, return_tensors="pt")
            events = [dict(zip(("onset", "offset", "label"), event, strict=True)) for event in clip.events]
            targets = events_to_frames(events, num_steps, CLIP_SECONDS / num_steps, soundscape_labels())
            self.rows.append({"input_features": features["input_features"][0], "labels": torch.from_numpy(targets)})

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        return self.rows[index]


def train(clips: dict, epochs: float) -> tuple[HTSATForSoundEventDetection, HTSATFeatureExtractor]:
    torch.manual_seed(0)
    labels = soundscape_labels()
    config = AutoConfig.from_pretrained(PRESET, num_labels=len(labels))
    config.id2label, config.label2id = dict(enumerate(labels)), {label: index for index, label in enumerate(labels)}
    model, extractor = HTSATForSoundEventDetection(config), HTSATFeatureExtractor.from_pretrained(PRESET)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=epochs,
            per_device_train_batch_size=16,
            learning_rate=1e-3,
            warmup_steps=50,
            weight_decay=0.05,
            lr_scheduler_type="cosine",
            logging_steps=50,
            save_strategy="no",
            report_to=[],
            seed=0,
        )
        Trainer(model, arguments, train_dataset=StrongLabels(clips, extractor, config.num_steps)).train()
    return model.eval(), extractor


def find_scores(detector, clips: dict, refinement: int) -> dict:
    found = detector((clip.waveform for clip in clips.values()), return_scores=True, time_refinement=refinement)
    return {name: (one["edges"], one["scores"]) for name, one in zip(clips, found, strict=True)}


def evaluate(detector, validation: dict, test: dict, refinement: int) -> dict:
    labels = soundscape_labels()
    known, unknown = find_scores(detector, validation, refinement), find_scores(detector, test, refinement)
    truth = {name: clip.events for name, clip in test.items()}
    row = {"passes": refinement}
    for name, metric in (("intersection_f1", intersection_f1), ("collar_f1", collar_f1)):
        decoding = tune_event_decoding(
            {file: scores for file, (_, scores) in known.items()},
            CLIP_SECONDS / len(next(iter(known.values()))[1]),
            {file: clip.events for file, clip in validation.items()},
            labels,
            metric=name,
        )
        detections = {
            file: [
                (event["onset"], event["offset"], event["label"])
                for event in decode_events(scores, None, decoding, labels, step_edges_seconds=edges)
            ]
            for file, (edges, scores) in unknown.items()
        }
        row[name] = metric(truth, detections)["macro_all_classes"]
    row["psds1"] = psds(truth, dict.fromkeys(test, CLIP_SECONDS), unknown, labels, scenario=1)["psds"]
    return row


def measure_cost(detector, waveform: np.ndarray, rounds: int = 15) -> dict[int, float]:
    """Seconds of one clip, all numbers of passes in turn, as medians."""
    seconds: dict[int, list[float]] = {refinement: [] for refinement in REFINEMENTS}
    for _ in range(rounds):
        for refinement, times in seconds.items():
            begin = time.perf_counter()
            detector(waveform, time_refinement=refinement)
            times.append(time.perf_counter() - begin)
    return {refinement: statistics.median(times) for refinement, times in seconds.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train-clips", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=15)
    parser.add_argument("--test-clips", type=int, default=300)
    parser.add_argument("--output", type=Path, help="write the figures there, as JSON")
    options = parser.parse_args()
    model, extractor = train(make_clips("train", options.train_clips), options.epochs)
    detector = pipeline("sound-event-detection", model=model, feature_extractor=extractor)
    validation, test = make_clips("validation", options.test_clips), make_clips("test", options.test_clips)
    rows = [evaluate(detector, validation, test, refinement) for refinement in REFINEMENTS]
    cost = measure_cost(detector, next(iter(test.values())).waveform)
    for row in rows:
        row["cost"] = cost[row["passes"]] / cost[1]
    print("| passes | step | intersection F1 | collar F1 | PSDS 1 | cost |\n| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(
            f"| {row['passes']} | {312.5 / row['passes']:.0f} ms | {100 * row['intersection_f1']:.1f} "
            f"| {100 * row['collar_f1']:.1f} | {row['psds1']:.3f} | {row['cost']:.2f} |"
        )
    machine = f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    print(f"\n{machine}; {versions}; {options.train_clips} training clips, {options.epochs:g} epochs, seed 0")
    if options.output:
        settings = {name: value for name, value in vars(options).items() if name != "output"}
        record = {"rows": rows, "machine": machine, "versions": versions, **settings}
        options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
