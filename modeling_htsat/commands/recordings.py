"""Recordings as commands take them: files and folders, by name; what cannot be heard is noted, and the rest goes on."""

import argparse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..audio_htsat import AudioError, list_audio_files


def add_recordings(parser: argparse.ArgumentParser):
    parser.add_argument("files", nargs="+", metavar="FILE", help="recordings, or folders of them")
    add_allow_truncated(parser)


def add_allow_truncated(parser: argparse.ArgumentParser):
    parser.add_argument("--allow-truncated", action="store_true", help="of a file that was cut, hear what there is")


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 upwards")
    return int(text)


def named_recordings(paths: Iterable[str]) -> tuple[list[tuple[str, Path]], list[str]]:
    """Name and path of every recording, and what is wrong with paths that hold none.

    A file goes by its own name, and one found in a folder by its path inside it; where two would share a name, by the
    path as it was given.
    """
    names: dict[Path, str] = {}
    failed: list[str] = []
    for path in map(Path, paths):
        try:
            inside = list_audio_files(path)
        except AudioError as error:
            failed.append(str(error))
            continue
        names |= {file: file.relative_to(path).as_posix() if file != path else file.name for file in inside}
    count = Counter(names.values())
    return [(name if count[name] == 1 else file.as_posix(), file) for file, name in names.items()], failed


def answers(
    task: Any, recordings: Sequence[tuple[str, Path]], failed: list[str], **call_options: Any
) -> Iterator[tuple[str, Any]]:
    """Name and answer of every recording; one that cannot be read is noted in `failed`, and the others go on."""
    found = task((path for _, path in recordings), on_error="skip", **call_options)
    bar = tqdm(recordings, unit="file", disable=None if len(recordings) > 1 else True)
    for (name, _), answer in zip(bar, found, strict=True):
        if answer is not None:
            yield name, answer
    # The remedy that the library names, as it is written here.
    failed += [sentence.replace("allow_truncated=True", "--allow-truncated") for sentence in task.failed.values()]
