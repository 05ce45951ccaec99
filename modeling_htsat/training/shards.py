"""Clips in parquet files, on this machine or elsewhere, read one row group at a time: this is how a stream is read.

A row group is some dozens of clips that lie together in a file. Reading one clip reads its group and keeps it, so an
order that stays within a few groups at a time, as `EpochBatches` makes it for `group_sizes`, reads each of them once.
"""

import contextlib
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import PurePath
from typing import Any, BinaryIO, NamedTuple, TypeVar, cast

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet

from .clips import CLIP_FEATURES

RETRY_PAUSES_SECONDS = (1.0, 4.0, 15.0)  # servers ask for some seconds of patience
FILES_AT_ONCE = 16  # whose footers, or labels, are read side by side: most of the time is spent waiting for an answer

# Trying again helps against none of these: no such file, no permission, no parquet.
_HOPELESS = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, pyarrow.ArrowInvalid)

Result = TypeVar("Result")


class ShardError(ValueError):
    """A file that cannot be read as clips; the message names it."""


class _Group(NamedTuple):
    """Where some rows lie together."""

    file: str
    number: int  # of the row group in its file
    num_rows: int
    row_in_file: int  # of its first row


class ShardRows:
    """The clips of parquet files, one file after the other, in the columns of `agkphysics/AudioSet`.

    Only `audio` must be there: of the other columns of a clip, those that are missing are not known, and further ones
    are left out. Copies for other processes take neither open files nor what was read along.

    Args:
        files: Paths, or URLs that fsspec knows, such as hf://datasets/agkphysics/AudioSet/data/bal_train/00.parquet.
        cached_groups: So many row groups stay in memory, encoded as they are in the file: some 10 MB each where
            `htsat prepare` made them, 100 MB and more in others' files. `EpochBatches` needs its `groups_at_once`.
    """

    _labels: list[pyarrow.Table] | None

    def __init__(self, files: Sequence[str | os.PathLike[str]], cached_groups: int = 4) -> None:
        if not files:
            raise ValueError("No parquet file was given; name at least one.")
        if cached_groups < 1:
            raise ValueError(f"cached_groups is {cached_groups}; at least 1 is needed.")
        self.files, self.cached_groups = [os.fspath(file) for file in files], cached_groups
        self._groups = [group for groups in _side_by_side(_read_groups, self.files) for group in groups]
        self.group_sizes: Sequence[int] = [group.num_rows for group in self._groups]
        self._ends = np.cumsum(self.group_sizes, dtype=np.int64)
        self._forget()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no clip {index}; there are {len(self)}.")
        index %= len(self)
        number = int(np.searchsorted(self._ends, index, side="right"))
        group = self._groups[number]
        row = index - int(self._ends[number]) + group.num_rows
        table = self._read_group(number)
        return _complete(_to_rows(table.slice(row, 1), group.file)[0], group.file, group.row_in_file + row)

    def without_audio(self) -> list[dict[str, Any]]:
        if self._labels is None:
            self._labels = _side_by_side(_read_without_audio, self.files)
        tables = zip(self.files, self._labels, strict=True)
        return [clip for file, table in tables for clip in _clips_without_audio(table, file)]

    def _read_group(self, number: int) -> pyarrow.Table:
        if self._process != os.getpid():
            self._forget()  # a forked process must not read from the files of its parent, which may be connections
        if number not in self._cache:
            while len(self._cache) >= self.cached_groups:
                self._cache.popitem(last=False)  # first, so that never more groups than promised are in memory
            group = self._groups[number]
            self._cache[number] = _retried(partial(self._read_from_open_file, group), group.file)
            self.groups_read += 1
        self._cache.move_to_end(number)
        return self._cache[number]

    def _read_from_open_file(self, group: _Group) -> pyarrow.Table:
        """One row group; the files read last stay open, as opening costs as much as reading where files are far."""
        try:
            if group.file not in self._open:
                while len(self._open) >= self.cached_groups:
                    self._open.popitem(last=False)[1].close()
                self._open[group.file] = _OpenShard(group.file)
            self._open.move_to_end(group.file)
            return self._open[group.file].read(group.number)
        except Exception:
            if shard := self._open.pop(group.file, None):  # its connection may be what is broken
                shard.close()
            raise

    def _forget(self) -> None:
        self._process = os.getpid()
        self._cache: OrderedDict[int, pyarrow.Table] = OrderedDict()
        self._open: OrderedDict[str, _OpenShard] = OrderedDict()
        self._labels = None  # asked for several times, and far away perhaps
        self.groups_read = 0  # by this copy, to see whether an order is a good one

    def __getstate__(self) -> dict[str, Any]:
        fleeting = ("_process", "_cache", "_open", "_labels", "groups_read")
        return {name: value for name, value in self.__dict__.items() if name not in fleeting}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


# ── one file ──────────────────────────────────────────────────────────────────────────────────────────────────────────


class _OpenShard:
    """An open parquet file, of which the columns of a clip are read."""

    def __init__(self, file: str) -> None:
        self._handle = _open_binary(file)
        try:
            # Buffered in advance, a group comes in one request, not in one for every column.
            self.parquet = pyarrow.parquet.ParquetFile(self._handle, pre_buffer=True)
            self.columns = _columns_of_a_clip(self.parquet.schema_arrow, file)
        except BaseException:
            self._handle.close()
            raise

    def read(self, number: int) -> pyarrow.Table:
        return self.parquet.read_row_group(number, columns=self.columns, use_threads=False)

    def close(self) -> None:
        with contextlib.suppress(Exception):  # it may be closed because it is broken
            self._handle.close()


def _open_binary(file: str) -> BinaryIO:
    if "://" not in file:
        return open(file, "rb")
    try:
        filesystem, path = fsspec.core.url_to_fs(file)
    except (ValueError, ImportError) as error:  # no such protocol, or no package for hf:// or s3://
        raise ShardError(f"{file} is out of reach ({_first_line(error)}); copy the file to this machine.") from error
    # fsspec's own reading ahead would fetch megabytes of sound around every few bytes of labels.
    return cast(BinaryIO, filesystem.open(path, "rb", cache_type="none"))


def _columns_of_a_clip(schema: pyarrow.Schema, file: str) -> list[str]:
    if "audio" not in schema.names:
        raise ShardError(
            f"{file} lacks the column audio; it has {', '.join(schema.names) or 'none'}. Give parquet files with the "
            "columns of agkphysics/AudioSet, such as `htsat prepare` writes."
        )
    audio = schema.field("audio").type
    if not pyarrow.types.is_struct(audio) or audio.get_field_index("bytes") < 0:
        raise ShardError(f"{file} has a column audio of the type {audio}; encoded sounds are needed, in its `bytes`.")
    return [name for name in CLIP_FEATURES if name in schema.names]


@contextlib.contextmanager
def _opened(file: str) -> Iterator[_OpenShard]:
    shard = _OpenShard(file)
    try:
        yield shard
    finally:
        shard.close()


def _read_groups(file: str) -> list[_Group]:
    with _opened(file) as shard:
        footer = shard.parquet.metadata
        sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
    begins = np.cumsum([0, *sizes]).tolist()
    return [_Group(file, number, size, begins[number]) for number, size in enumerate(sizes) if size]


def _read_without_audio(file: str) -> pyarrow.Table:
    with _opened(file) as shard:
        columns = [name for name in shard.columns if name != "audio"]
        return shard.parquet.read(columns=columns, use_threads=False)


def _clips_without_audio(table: pyarrow.Table, file: str) -> list[dict[str, Any]]:
    rows = _to_rows(table, file) if table.num_columns else [{} for _ in range(table.num_rows)]
    clips = [_complete(row, file, number) for number, row in enumerate(rows)]
    for clip in clips:
        del clip["audio"]
        for column in ("labels", "human_labels"):
            # AudioSet has millions of labels and few hundred names: each need not be in memory more than once.
            clip[column] = None if clip[column] is None else [sys.intern(name) for name in clip[column]]
    return clips


def _to_rows(table: pyarrow.Table, file: str) -> list[dict[str, Any]]:
    try:
        return table.to_pylist()
    except (UnicodeDecodeError, pyarrow.ArrowInvalid) as error:
        raise ShardError(f"{file} is damaged ({_first_line(error)}); give another, or fetch it anew.") from error


def _complete(row: Mapping[str, Any], file: str, number: int) -> dict[str, Any]:
    """A row with all columns of a clip, and a name even where the file gives none."""
    clip = {column: row.get(column) for column in CLIP_FEATURES}
    if clip["video_id"] is None:
        clip["video_id"] = f"{PurePath(file).stem}-{number}"
    return clip


# ── many files, of which some are far away ────────────────────────────────────────────────────────────────────────────


def _side_by_side(read: Callable[[str], Result], files: Sequence[str]) -> list[Result]:
    with ThreadPoolExecutor(min(FILES_AT_ONCE, len(files))) as threads:
        jobs = [threads.submit(_retried, partial(read, file), file) for file in files]
        try:
            return [job.result() for job in jobs]
        except BaseException:
            threads.shutdown(cancel_futures=True)  # one sentence about one file is enough
            raise


def _retried(read: Callable[[], Result], file: str) -> Result:
    for pause in (*RETRY_PAUSES_SECONDS, None):
        try:
            return read()
        except ShardError:
            raise
        except Exception as error:  # what the libraries behind fsspec raise has no ancestor in common
            if pause is None or _is_hopeless(error, file):
                raise ShardError(_sentence(error, file)) from error
            time.sleep(pause)
    raise AssertionError("the last attempt returns or raises")


def _is_hopeless(error: Exception, file: str) -> bool:
    """Whether it will be the same the next time; what pyarrow finds damaged in a file that lies here stays damaged."""
    is_damage = isinstance(error, (pyarrow.ArrowException, UnicodeDecodeError))
    is_damage = is_damage or (type(error) is OSError and error.errno is None)
    return isinstance(error, _HOPELESS) or (is_damage and "://" not in file)


def _sentence(error: Exception, file: str) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{file} does not exist; check the name of the shard."
    if isinstance(error, pyarrow.ArrowInvalid):
        return f"{file} is not a parquet file, or a damaged one ({_first_line(error)}); give another, or fetch it anew."
    if isinstance(error, ImportError):
        return (
            f"{file} needs a package that is not installed ({_first_line(error)}); install it, or copy the file here."
        )
    tries = "" if _is_hopeless(error, file) else f" after {len(RETRY_PAUSES_SECONDS) + 1} attempts"
    return f"The shard {file} could not be read{tries} ({_first_line(error)}); check the file, or the network."


def _first_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0].rstrip(".")


__all__ = ["ShardError", "ShardRows"]
