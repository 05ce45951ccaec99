"""`htsat classify`: which sounds are in recordings."""

import argparse
from pathlib import Path

from ..pipeline_htsat import HTSATAudioClassificationPipeline
from .models import add_models, load_pipeline
from .outputs import check_table_output, report_failures, report_rows
from .recordings import add_recordings, answers, named_recordings, positive


def add_arguments(parser: argparse.ArgumentParser):
    add_recordings(parser)
    add_models(parser)
    add = parser.add_argument
    add("--top-k", type=positive, default=5, metavar="N", help="labels per recording (default: 5)")
    add("--output", type=Path, metavar="FILE", help="write .tsv, .csv, .json or .jsonl instead")


def run(options: argparse.Namespace) -> int:
    check_table_output(options.output)
    recordings, failed = named_recordings(options.files)
    if not recordings:
        return report_failures(failed)
    tagger = load_pipeline(
        "audio-classification", options.model, pipeline_class=HTSATAudioClassificationPipeline, top_k=options.top_k
    )
    rows = []
    for name, tags in answers(tagger, recordings, failed, allow_truncated=options.allow_truncated):
        rows += [{"filename": name, "label": tag["label"], "score": tag["score"]} for tag in tags]
    report_rows(rows, ("filename", "label", "score"), options.output)
    return report_failures(failed)
