"""What all fuzzed kinds are made of: a valid file, the way in, and what an answer must be."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

Mutate = Callable[[Random, bytes, Sequence[bytes]], bytes]


class WrongAnswerError(Exception):
    """An answer that cannot be right."""


class Seed(NamedTuple):
    path: Path
    read: Callable[[Path, Random], object]
    mutate: Mutate


class Kind(NamedTuple):
    make: Callable[[Path], Iterable[Seed]]
    refusals: tuple[type[Exception], ...]
    is_ours: bool = True  # False: transformers speaks, in more than one line, and perhaps without the file's name


def check(is_right: bool, problem: str) -> None:
    if not is_right:
        raise WrongAnswerError(problem)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
