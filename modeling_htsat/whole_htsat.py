"""Files and folders that appear whole or not at all: written under a hidden name, and moved to their own when done.

Whoever is killed in between leaves what was there before, and beside it something hidden that nobody reads. Several
files that belong together, in a folder with others, are the one exception: see `whole_files`.
"""

import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

STAGED, PLAN = ".staged", "plan.json"
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
    """A hidden folder within this one to fill with files, which take their places together when all are written.

    One move decides: that of the key, a file that whoever reads the others reads first. Who is killed before it leaves
    the old files; who is killed after it leaves the rest of the moves to `finish_files`, which readers call.

    Args:
        is_replaced: Whether a name is of a kind of which none is left but the new ones, if there are new ones.
    """
    folder = Path(folder)
    finish_files(folder)
    temporary = folder / f".{key}.{secrets.token_hex(4)}.tmp"
    staged = temporary.with_suffix(STAGED)
    try:
        with _named_errors(folder, temporary):
            temporary.mkdir(parents=True)
            yield temporary
            new = set(os.listdir(temporary))
            old = set(filter(is_replaced, os.listdir(folder))) if any(map(is_replaced, new)) else set()
            content = (temporary / key).read_text(encoding="utf-8")
            plan = {"key": key, "content": content, "outdated": sorted(old - new)}
            (temporary / PLAN).write_text(json.dumps(plan), encoding="utf-8")
            temporary.rename(staged)
            os.replace(staged / key, folder / key)
    except BaseException:
        if _plan_in_force(staged) is None:
            with suppress(OSError):
                (staged / PLAN).unlink(missing_ok=True)  # first: without it nobody takes up what is left
            for path in (temporary, staged):
                shutil.rmtree(path, ignore_errors=True)
        raise
    finish_files(folder)


def finish_files(folder: str | os.PathLike[str]):
    """Make the moves that somebody who was killed in `whole_files` decided on and did not come to make."""
    for staged in Path(folder).glob(f".*{STAGED}"):
        if (plan := _plan_in_force(staged)) is None:
            continue
        try:
            for name in plan["outdated"]:
                (staged.parent / name).unlink(missing_ok=True)
            for name in set(_names_in(staged)) - {PLAN}:
                with suppress(FileNotFoundError):  # another process makes the same moves
                    os.replace(staged / name, staged.parent / name)
        except OSError as error:
            raise OSError(
                f"{folder} holds a model that was half moved there when its writer was killed, and the rest cannot be "
                f"moved ({error.strerror}); let yourself write there, and try again."
            ) from error
        shutil.rmtree(staged, ignore_errors=True)


def _names_in(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:  # another process has made all moves
        return []


def _plan_in_force(staged: Path) -> dict[str, Any] | None:
    """Of what is to be moved, since its key has been, and nothing took that one's place since; else None.

    The folder may be anybody's, so nothing in it is led outside.
    """
    try:
        plan = json.loads((staged / PLAN).read_text(encoding="utf-8"))
        key, content, outdated = plan["key"], plan["content"], plan["outdated"]
        is_within = all(re.fullmatch(r"[\w.-]+", name) for name in [key, *outdated]) and not staged.is_symlink()
        has_moved = not (staged / key).exists() and (staged.parent / key).read_text(encoding="utf-8") == content
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return plan if is_within and has_moved else None


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


__all__ = ["finish_files", "is_leftover", "no_room", "whole_file", "whole_files", "whole_folder"]
