"""Events and tags of a corpus that is larger than one machine: a parquet shard for every few hundred recordings.

One process, for a folder that is searched inside, a list with a path on each line, parquet files with a column `audio`
(here or on the Hub, read where they lie), or one split of a corpus that training knows too:

    python training_scripts/run_detection.py recordings/ --model htsat-audioset --output found
    python training_scripts/run_detection.py recordings.txt --model htsat-audioset --output found
    python training_scripts/run_detection.py "hf://datasets/agkphysics/AudioSet/data/eval/*.parquet" \
        --model htsat-audioset --output found
    python training_scripts/run_detection.py agkphysics/AudioSet --corpus audioset --split test \
        --corpus-options streaming=true --model htsat-audioset --output found

A process for each of four GPUs, either way:

    torchrun --standalone --nproc_per_node 4 training_scripts/run_detection.py recordings/ \
        --model htsat-audioset --output found --dtype bfloat16 --batch-size 64
    accelerate launch --num_processes 4 training_scripts/run_detection.py recordings/ ...

Machines that share the output folder: `torchrun` or `accelerate launch` on each, as for training. As processes never
talk to each other, it also does to say which one each is, and no machine waits for another:

    RANK=0 WORLD_SIZE=2 python training_scripts/run_detection.py /shared/recordings ... --output /shared/found
    RANK=1 WORLD_SIZE=2 python training_scripts/run_detection.py /shared/recordings ... --output /shared/found

The same command, with any number of processes, goes on where it stopped. `found/summary.json` says what there is in the
end, and which recordings could not be heard; if there are such, the exit status is 1.
"""

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from modeling_htsat import HTSATSoundEventDetectionPipeline
from modeling_htsat.cli import in_words
from modeling_htsat.commands.models import add_detection_options, add_models, load_pipeline
from modeling_htsat.commands.outputs import FAILED, OK, check_event_output
from modeling_htsat.commands.recordings import add_allow_truncated, positive
from modeling_htsat.corpus_detection import (
    DetectionSettings,
    Process,
    begin_work,
    count_done,
    cut_into_parts,
    describe_work,
    detect_corpus,
    find_recordings,
    merge_events,
    summarize,
    this_process,
)
from modeling_htsat.events_htsat import EventDecoding
from modeling_htsat.labels import load_label_groups

INTERRUPTED = 130


def main() -> int:
    options = make_parser().parse_args()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.captureWarnings(True)
    try:
        return run(options)
    except KeyboardInterrupt:
        return complain("interrupted; the same command goes on from here", INTERRUPTED)
    except (ValueError, OSError) as error:
        return complain(in_words(error), FAILED)


def run(options: argparse.Namespace) -> int:
    process = this_process()
    check_event_output(options.merge, [])
    corpus_options = read_corpus_options(options.corpus_options)
    recordings = find_recordings(options.source, options.corpus, options.split, **corpus_options)
    parts = cut_into_parts(recordings, options.recordings_per_shard)
    settings = detection_settings(options)
    detector = load_detector(options, process)
    work = describe_work(detector, recordings, parts, settings)
    manifest = begin_work(options.output, work, source=options.source, models=options.model)

    num_workers = num_reading_processes(options, detector.device)
    steps = detect_corpus(detector, recordings, parts, options.output, settings, manifest, process, num_workers)
    report_steps(steps, parts, options.output, process)

    if process.local_rank > 0:
        return OK
    summary = summarize(options.output, work)
    if options.merge:
        merge_events(options.output, work, options.merge)
    return report(summary, options.output)


def read_corpus_options(texts: list[str]) -> dict[str, Any]:
    if not texts:
        return {}
    from modeling_htsat.training.corpora import corpus_options  # datasets, which is an extra

    return corpus_options(texts)


def detection_settings(options: argparse.Namespace) -> DetectionSettings:
    groups, decoding = load_label_groups(options.groups) if options.groups else (None, None)
    if options.threshold is not None:
        decoding = EventDecoding(threshold=options.threshold)
    return DetectionSettings(
        batch_size=options.batch_size,
        top_k=options.top_k,
        decoding=decoding.to_dict() if decoding else None,
        groups=groups,
        time_refinement=options.time_refinement,
        allow_truncated=options.allow_truncated,
    )


def load_detector(options: argparse.Namespace, process: Process) -> HTSATSoundEventDetectionPipeline:
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        device = f"cuda:{process.local_rank % max(torch.cuda.device_count(), 1)}"
    detector = load_pipeline(
        "sound-event-detection", options.model, pipeline_class=HTSATSoundEventDetectionPipeline, device=device
    )
    detector.model.to(getattr(torch, options.dtype))
    for member in getattr(detector.model, "members", [detector.model]):
        member.config.windows_per_pass = options.batch_size  # of an hour as many at once as of short recordings
    return detector


def num_reading_processes(options: argparse.Namespace, device: torch.device) -> int:
    """Beside a GPU, this process's share of the machine's cores; where the cores compute, reading costs little."""
    if options.num_workers is not None:
        return options.num_workers
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return 0 if device.type == "cpu" else min((os.cpu_count() or 1) // processes_here, 16)


def report_steps(steps, parts: list[range], output: Path, process: Process):
    """Let the work go on; on a screen, with a bar of the whole corpus and what this process alone does."""
    begin, num_heard, heard_seconds = time.perf_counter(), 0, 0.0
    is_quiet = None if process.local_rank == 0 else True
    total, done = sum(map(len, parts)), count_done(output, parts)
    with tqdm(total=total, initial=done, unit="recording", disable=is_quiet) as bar:
        for step in steps:
            num_heard += len(step.rows)
            heard_seconds += sum(row.get("duration_seconds") or 0 for row in step.rows)
            bar.update(len(step.rows))
            bar.set_postfix_str(f"{heard_seconds / (time.perf_counter() - begin):.0f} h/h", refresh=False)
            if step.written:
                bar.n = count_done(output, parts)  # the other processes' shards among them
                bar.refresh()
    seconds = time.perf_counter() - begin
    if process.local_rank == 0:
        print(
            f"process {process.rank} of {process.world_size}: {num_heard} recordings in {seconds:.1f} s: "
            f"{num_heard / seconds:.1f} recordings/s, {heard_seconds / seconds:.0f} h of audio per hour"
        )


def report(summary: dict, output: Path) -> int:
    failed = summary["failed"]
    print(
        f"{output}: {summary['recordings']} recordings, {summary['hours']:.2f} h, {summary['events']} events, "
        f"{len(failed)} not heard"
    )
    for row in failed[:10]:
        complain(f"{row['filename']}: {row['error']}".replace("allow_truncated=True", "--allow-truncated"), FAILED)
    if len(failed) > 10:
        complain(f"{len(failed) - 10} more are listed in {output / 'summary.json'}", FAILED)
    return FAILED if failed else OK


def complain(sentence: str, status: int) -> int:
    sys.stderr.write(f"run_detection: {' '.join(sentence.split())}\n")
    return status


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", help="a folder of recordings, a list of them, a pattern of .parquet files, or where a corpus is")
    add("--corpus", metavar="KIND", help="the source is a corpus of this kind, such as audioset or hub")
    add("--split", default="test", help="of the corpus: train, validation or test (default)")
    add("--corpus-options", nargs="+", default=[], metavar="NAME=VALUE", help="of the corpus, such as streaming=true")
    add("--output", type=Path, required=True, metavar="DIR", help="folder for the shards; the same again to go on")
    add("--merge", type=Path, metavar="FILE", help="in the end, also one table of all events: .tsv, .csv or .json")
    add("--recordings-per-shard", type=positive, default=256, metavar="N", help="default: 256")
    add_models(parser)
    add_detection_options(parser)
    add_allow_truncated(parser)
    add("--top-k", type=positive, default=10, metavar="N", help="tags per recording (default: 10)")
    add("--batch-size", type=positive, default=16, metavar="N", help="windows heard at once (default: 16)")
    add("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of the model's numbers")
    add("--device", help="such as cpu or cuda:1 (default: of this machine's GPUs, each process takes its own)")
    add("--num-workers", type=int, metavar="N", help="processes that read audio (default: cores, if there is a GPU)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
