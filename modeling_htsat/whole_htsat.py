"""Files and folders that appear whole or not at all: written under a hidden name, and moved to their own when done.

Whoever is killed in between leaves what was there before, and beside it something hidden that nobody reads.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, largest file


@contextmanager
def whole_file(path: str | os.PathLike[str], suffix: str = ".tmp") -> Iterator[Path]:
    """The hidden name to write to; at the end of the block it takes the file's place. Some libraries want a suffix."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{suffix}")
    try:
        with _named_errors(path, temporary):
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to fill, which takes its place when it is full, and vanishes when that fails."""
    path = Path(path).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists, and is not an empty folder; name another one, or remove it first.")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with _named_errors(path, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            if path.exists():
                path.rmdir()
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def whole_files(folder: str | os.PathLike[str], key: str, is_replaced: Callable[[str], object]) -> Iterator[Path]:
    """A hidden folder within this one to fill with files, which take their places when all of them are written.

    Args:
        key: The file without which nobody reads the others: it goes first and comes last, so that new ones beside old
            ones are never taken for a whole.
        is_replaced: Whether a name is of a kind of which none is left but the new ones, if there are new ones.
    """
    folder = Path(folder)
    temporary = folder / f".{key}.{secrets.token_hex(4)}.tmp"
    try:
        with _named_errors(folder, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            names = sorted(os.listdir(temporary), key=lambda name: name == key)
            old = filter(is_replaced, os.listdir(folder)) if any(map(is_replaced, names)) else ()
            for name in ([key] if key in names else []) + [name for name in old if name not in names]:
                (folder / name).unlink(missing_ok=True)
            for name in names:
                os.replace(temporary / name, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """Whether it is what somebody who was killed left hidden."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.tmp", path.name) is not None


@contextmanager
def _named_errors(path: Path, temporary: Path) -> Iterator[None]:
    """What keeps the hidden name from being written is said of the real one."""
    try:
        yield
    except Exception as error:
        reason, remedy = no_room(error), "make room there"
        if reason is None:
            reason, remedy = _refusal(error, temporary), "name another place"
        if reason is None:
            raise
        raise OSError(f"{path} could not be written: {reason}; {remedy}. What was there before is kept.") from error


def _refusal(error: Exception, temporary: Path) -> str | None:
    """What the system says of a place that may not be written to."""
    if isinstance(error, OSError) and str(error.filename or "").startswith(str(temporary)):
        return error.strerror
    said_by_rust = re.search(r"\(os error (\d+)\)", str(error))  # safetensors has errors of its own
    return os.strerror(int(said_by_rust[1])) if said_by_rust else None


def no_room(error: BaseException) -> str | None:
    """What the system says of a disk that takes no more, by way of whichever library; None for any other error."""
    for number in NO_ROOM:
        if isinstance(error, OSError) and error.errno == number or os.strerror(number) in str(error):
            return os.strerror(number)
    # All that `torch.save` has to say about it.
    if isinstance(error, RuntimeError) and re.search(r"iostream error|unexpected pos \d+ vs \d+", str(error)):
        return os.strerror(errno.ENOSPC)
    return None


__all__ = ["is_leftover", "no_room", "whole_file", "whole_files", "whole_folder"]
