"""The files themselves: ONNX graphs and programs of `torch.export`, written, read again and run.

onnx, onnxruntime and onnxscript are an extra, so what needs them imports them where it needs them.
"""

import json
import logging
import tempfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2"}
NEEDED_FOR_ONNX = ("onnx", "onnxruntime", "onnxscript")
METADATA_FILE = "metadata.json"  # inside a .pt2
FRONT_END = "front_end"  # what a module is called whose products keep their 32 bits
BATCH = torch.export.Dim("batch", min=1)


def check_onnx_is_here():
    if missing := [name for name in NEEDED_FOR_ONNX if not find_spec(name)]:
        raise ValueError(f'The format onnx needs {", ".join(missing)}: `pip install "modeling-htsat[export]"`.')


@contextmanager
def quietly() -> Iterator[None]:
    """Exporters tell of every operator library that they did not find, and of everything that they will do better."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# ── ONNX ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def write_onnx(
    path: Path,
    module: nn.Module,
    example: torch.Tensor,
    names: tuple[Sequence[str], Sequence[str]],
    metadata: Mapping[str, Any],
    int8: bool,
    dynamic_batch: bool,
) -> None:
    """One file with graph, weights and metadata; `names` are those of the inputs and of the outputs."""
    import onnx

    program = torch.onnx.export(
        module,
        (example,),
        input_names=names[0],
        output_names=names[1],
        dynamic_shapes=({0: BATCH},) if dynamic_batch else None,
        dynamo=True,
        verbose=False,
    )
    graph = with_8_bits(program.model_proto) if int8 else program.model_proto
    for node in graph.graph.node:
        del node.metadata_props[:]  # where each came from, with the paths of the machine that exported it
    onnx.helper.set_model_props(graph, {name: json.dumps(value) for name, value in metadata.items()})
    onnx.save(graph, path)


def with_8_bits(graph: Any) -> Any:
    """The same with 8-bit weights, scaled by output, in all products but the front end's.

    What they are multiplied with is scaled anew in every call. The head is a convolution and keeps its 32 bits.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    kept = [node.name for node in graph.graph.node if is_of_front_end(node)]
    with tempfile.TemporaryDirectory() as folder:
        whole, prepared, quantized = (Path(folder) / f"{name}.onnx" for name in ("whole", "prepared", "quantized"))
        onnx.save(graph, whole)  # given as it is, older runtimes lose it
        quant_pre_process(whole, prepared, skip_optimization=True, skip_symbolic_shape=True)
        quantize_dynamic(
            prepared,
            quantized,
            op_types_to_quantize=["MatMul"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=kept,
        )
        return onnx.load(quantized)


def is_of_front_end(node: Any) -> bool:
    scopes = (entry.value for entry in node.metadata_props if entry.key == "pkg.torch.onnx.name_scopes")
    return any(f"'{FRONT_END}'" in scope for scope in scopes)


def run_onnx(path: Path, sounds: torch.Tensor) -> dict[str, torch.Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    answers = session.run(None, {session.get_inputs()[0].name: sounds.numpy()})
    return {out.name: torch.from_numpy(answer) for out, answer in zip(session.get_outputs(), answers, strict=True)}


# ── torch.export ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write_program(
    path: Path, module: nn.Module, example: torch.Tensor, metadata: Mapping[str, Any], dynamic_batch: bool
) -> None:
    shapes = ({0: BATCH},) if dynamic_batch else None
    program = torch.export.export(module, (example,), dynamic_shapes=shapes, strict=False)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # the paths of the machine that exported it
    torch.export.save(program, path, extra_files={METADATA_FILE: json.dumps(metadata)})


def run_program(path: Path, sounds: torch.Tensor) -> dict[str, torch.Tensor]:
    return torch.export.load(path).module()(sounds)


def read_metadata(path: Path) -> dict[str, Any]:
    """What an exported file knows beside its graph: labels, rate, length of a clip, thresholds and more."""
    if path.suffix == SUFFIXES["torch-export"]:
        # An archive, in a folder of any name; torch.export.load would run the pickles that may lie in it.
        with zipfile.ZipFile(path) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(f"/extra/{METADATA_FILE}"))
            return json.loads(archive.read(name))
    import onnx

    properties = onnx.load(path, load_external_data=False).metadata_props
    return {entry.key: json.loads(entry.value) for entry in properties}
