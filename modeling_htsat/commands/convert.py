"""`htsat convert`: a model folder of a checkpoint from elsewhere."""

import argparse
import sys
from pathlib import Path

from ..conversion import convert_checkpoint
from .outputs import OK


def add_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument
    add("checkpoint", help="an authors', Swin or CLAP checkpoint, or the folder of a CLAP or Swin model")
    add("output_dir", type=Path, help="the folder to make; must not exist yet, or be empty")
    add("--preset", metavar="DIR", help="front end and labels (default: AudioSet at 32 kHz; of a CLAP, its own)")
    add("--labels", metavar="FILE", help="label names, one on each line, in place of the preset's")


def run(options: argparse.Namespace) -> int:
    model = convert_checkpoint(options.checkpoint, options.output_dir, options.preset, options.labels)
    name, millions = type(model).__name__, sum(parameter.numel() for parameter in model.parameters()) / 1e6
    sys.stdout.write(f"{options.output_dir}: {name}, {millions:.1f} M parameters, {model.config.num_labels} labels\n")
    return OK
