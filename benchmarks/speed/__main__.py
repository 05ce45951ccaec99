"""How fast, beside peers and beside what the machine could do? `make bench`, or `python -m benchmarks.speed`.

On two cores it takes about 15 minutes, which are to be spent on a quiet machine; `--quick` is a smoke run of seconds
with tiny models, whose figures say nothing. Writes `benchmarks/speed.json` and `speed.md` (on a GPU `speed_gpu.*`),
and prints the difference to what these held before.
"""

import argparse
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from transformers import logging

from .clock import Row
from .contestants import ROOT, Scale
from .gpu import gpu_encoder, gpu_front_end, gpu_training
from .processor import beside_ast, encoder, end_to_end, front_end, training, training_memory
from .recordings import recordings
from .report import Record, comparison_of, markdown_of, new_record, table_of, write

Section = Callable[[Scale], Iterator[Row]]
PROCESSOR: dict[str, Section] = {
    section.__name__: section
    for section in (front_end, encoder, end_to_end, training, beside_ast, training_memory, recordings)
}
COMMAND = "python -m benchmarks.speed"


def sections_of(device: str) -> dict[str, Section]:
    if device == "cpu":
        return PROCESSOR
    return {section.__name__: partial(section, device=device) for section in (gpu_front_end, gpu_encoder, gpu_training)}


def measure(sections: dict[str, Section], scale: Scale) -> list[Row]:
    """All rows; every section is printed as soon as it is there."""
    rows: list[Row] = []
    for name, section in sections.items():
        begin = time.monotonic()
        found = list(section(scale))
        print(f"\n{name}, {time.monotonic() - begin:.0f} s\n{table_of(found)}", flush=True)
        rows += found
    return rows


def main(arguments: list[str] | None = None):
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=default, help=f"here: {default}")
    parser.add_argument(
        "--sections",
        nargs="+",
        metavar="NAME",
        help="some of them, to be compared and not written: " + ", ".join(PROCESSOR),
    )
    parser.add_argument("--quick", action="store_true", help="a smoke run with tiny models")
    parser.add_argument("--output", type=Path, metavar="DIR", default=ROOT / "benchmarks", help="here by default")
    options = parser.parse_args(arguments)
    if options.quick and options.output == ROOT / "benchmarks":
        parser.error("a smoke run says nothing about speed; name another place for it: --output DIR")
    sections = sections_of(options.device)
    if strangers := set(options.sections or ()) - sections.keys():
        parser.error(f"no section is called {sorted(strangers)[0]!r}; there are {', '.join(sections)}")
    logging.set_verbosity_error()  # what the peers warn of is not to be mended here
    warnings.filterwarnings("ignore", module="transformers")
    chosen = {name: section for name, section in sections.items() if name in (options.sections or sections)}
    rows = measure(chosen, Scale.quick() if options.quick else Scale.full())

    file = options.output / ("speed.json" if options.device == "cpu" else "speed_gpu.json")
    last = Record.load(file)
    new = new_record(rows, options.device)
    print("\n" + comparison_of(new, last))
    if not options.sections:  # a table has one date, one machine and one set of versions
        options.output.mkdir(parents=True, exist_ok=True)
        new.save(file)
        write(file.with_suffix(".md"), markdown_of(new, COMMAND))


if __name__ == "__main__":
    main()
