"""`htsat export`: a model as one file that runs without this package."""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .. import modeling_htsat
from ..ensemble import MEMBERS_FILE
from ..export.export import INPUT_NAMES, OUTPUT_NAMES, check_request, export_model
from ..export.formats import SUFFIXES
from ..feature_extraction_htsat import HTSATFeatureExtractor
from .models import check_name
from .outputs import OK, check_writable


def add_arguments(parser: argparse.ArgumentParser):
    add = parser.add_argument
    add("model", metavar="MODEL", help="a model folder or a name on the Hub")
    add("output", type=Path, metavar="OUTPUT", help="the file to write: .onnx, or .pt2 of torch-export")
    add("--format", choices=tuple(SUFFIXES), default="onnx", help="what kind of file (default: onnx)")
    add("--input", choices=tuple(INPUT_NAMES), default="waveform", help="what it takes (default: waveform)")
    add("--int8", action="store_true", help="with 8-bit products: smaller and faster, nearly the same answers")
    add("--dynamic-batch", action="store_true", help="take any number of clips at once (default: one)")
    add("--seconds", type=float, metavar="X", help="of every clip (default: whole seconds of one window)")


def run(options: argparse.Namespace) -> int:
    check_writable(options.output)
    check_request(options.output, options.format, options.input, options.int8)
    model, extractor = load(options.model)
    file = export_model(
        model,
        extractor,
        options.output,
        format=options.format,
        input=options.input,
        int8=options.int8,
        dynamic_batch=options.dynamic_batch,
        seconds=options.seconds,
    )
    shape = " x ".join(map(str, file.input_shape))
    sys.stdout.write(
        f"{file.path}: {file.path.stat().st_size / 1e6:.1f} MB, {file.input_name} ({shape}) to "
        f"{', '.join(file.output_names)}; largest difference to PyTorch for noise: {file.difference:.1e}\n"
    )
    return OK


def load(name: str) -> tuple[Any, HTSATFeatureExtractor]:
    """A model of whichever kind lies there, in float32, and its extractor."""
    if (Path(name) / MEMBERS_FILE).is_file():
        raise ValueError(f"{name} is an ensemble; export its members one by one.")
    check_name(name)
    try:
        (kind,) = AutoConfig.from_pretrained(name, trust_remote_code=False).architectures or ["none"]
        if kind in OUTPUT_NAMES:
            model = getattr(modeling_htsat, kind).from_pretrained(name, dtype=torch.float32)
            return model, HTSATFeatureExtractor.from_pretrained(name)
    except Exception as error:  # what the Hub, torch and safetensors raise is anybody's guess
        reason = next(iter(str(error.__cause__ or error).splitlines()), type(error).__name__)
        raise ValueError(f"The model {name} cannot be loaded: {reason}") from error
    raise ValueError(f"The model {name} is of the class {kind}; one of {', '.join(OUTPUT_NAMES)} is needed.")
