"""Clips in the HDF5 packs of PANNs, which the authors' HTS-AT code reads too: sounds of equal length, and targets.

A pack holds `audio_name` (clips,), `waveform` (clips, samples) in 16 bit, `target` (clips, classes), and the attribute
`sample_rate`. An index has `hdf5_path` and `index_in_hdf5` instead of the waveforms: they are in packs elsewhere.
Layout: https://github.com/qiuqiangkong/audioset_tagging_cnn, utils/dataset.py and utils/create_indexes.py

The `.npy` files of the authors' ESC-50 and Speech Commands recipes are pickles, which can run anything that their maker
likes, and are not read; load these data sets from their own folders, as the corpora `esc50` and `speech_commands`.
"""

import contextlib
import io
import logging
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import soundfile

from ..audio_htsat import MAX_SAMPLING_RATE
from ..tables import in_one_line
from .corpora.audioset import audioset_mids

logger = logging.getLogger(__name__)

ROWS_AT_ONCE = 4096  # of targets: as many rows of 527 classes are 2 MB
MAX_BYTES_AT_ONCE = 2**29  # two million names are 40 MB; a damaged header claims any size
SUBTYPES = {"int16": "PCM_16", "float32": "FLOAT"}  # PANNs wrote float32 before 2020


class PackError(ValueError):
    """A file that is no pack, or not a whole one; the message names it."""


class _Listed(NamedTuple):
    """What a pack or an index says of its clips."""

    names: np.ndarray  # (clips,) as bytes, which take a quarter of the memory of text
    packs: list[str]  # where each clip is
    rows: np.ndarray  # (clips,) and in which row
    classes: list[tuple[int, ...]]
    num_classes: int


class PackRows:
    """The clips of packs or of indexes of packs, one file after the other, each as a WAV file in memory.

    Rows whose name is empty are left out: PANNs keeps them, all zeros, for clips that could not be downloaded. Copies
    for other processes open the files anew.

    Args:
        files: Packs, or indexes. The packs of an index are looked for where it says, and then near the index, by the
            end of their path, since `../workspace/hdf5s/waveforms/eval.h5` was true on another machine.
        label_names: The classes in the order of the targets; 527 are AudioSet's, with its MIDs as ids.
        sampling_rate: Of packs that do not say it.
    """

    group_sizes: Sequence[int] | None = None  # a clip lies in one piece, so any order is cheap

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]],
        label_names: Sequence[str] | None = None,
        sampling_rate: int | None = None,
    ) -> None:
        if not files:
            raise ValueError("No pack was given; name at least one HDF5 file.")
        self._packs = _OpenPacks(sampling_rate)
        listed = [_read_list(self._packs, os.fspath(file)) for file in files]
        for file, one in zip(files, listed, strict=True):
            if one.num_classes != listed[0].num_classes:
                raise PackError(f"{file} has {one.num_classes} classes, and {files[0]} has {listed[0].num_classes}.")
        self.label_ids, self.label_names = _name_classes(os.fspath(files[0]), listed[0].num_classes, label_names)
        self._names = np.concatenate([one.names for one in listed])
        self._rows = np.concatenate([one.rows for one in listed])
        self._pack_of_clip = [sys.intern(pack) for one in listed for pack in one.packs]
        self._classes = [classes for one in listed for classes in one.classes]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = int(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no clip {index}; there are {len(self)}.")
        clip = self._describe(index)
        wav = self._packs.read(self._pack_of_clip[index], int(self._rows[index]))
        return {"video_id": clip["video_id"], "audio": {"bytes": wav, "path": clip["video_id"]}, **clip}

    def without_audio(self) -> list[dict[str, Any]]:
        return [self._describe(index) for index in range(len(self))]

    def _describe(self, index: int) -> dict[str, Any]:
        return {
            "video_id": _text(self._names[index]),
            "labels": [self.label_ids[number] for number in self._classes[index]],
            "human_labels": [self.label_names[number] for number in self._classes[index]],
            "events": None,
        }


# ── open files ────────────────────────────────────────────────────────────────────────────────────────────────────────


class _OpenPacks:
    """HDF5 files by path, opened when they are needed, and anew in every process."""

    def __init__(self, sampling_rate: int | None) -> None:
        self._sampling_rate = sampling_rate
        self._forget()

    def __getitem__(self, path: str) -> Any:
        if self._process != os.getpid():
            self._forget()  # open files of HDF5 do not survive a fork
        if path not in self._files:
            self._files[path] = _open_hdf5(path)
        return self._files[path]

    def read(self, path: str, row: int) -> bytes:
        """One clip as a WAV file."""
        with _refusing_damage(path):
            waveform = self[path]["waveform"][row]
        file = io.BytesIO()
        soundfile.write(file, waveform, self.rate_of(path), format="WAV", subtype=SUBTYPES[waveform.dtype.name])
        return file.getvalue()

    def rate_of(self, path: str) -> int:
        with _refusing_damage(path):
            rate = self[path].attrs.get("sample_rate", self._sampling_rate)
        if rate is None:
            raise PackError(f"{path} has no attribute sample_rate; say what it is with sampling_rate=.")
        if np.ndim(rate) or not 1 <= rate <= MAX_SAMPLING_RATE:
            raise PackError(
                f"{path} has the attribute sample_rate {rate}; a number up to {MAX_SAMPLING_RATE} is needed."
            )
        return int(rate)

    def _forget(self) -> None:
        self._process = os.getpid()
        self._files: dict[str, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"_sampling_rate": self._sampling_rate}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


@contextlib.contextmanager
def _refusing_damage(path: str) -> Iterator[None]:
    """HDF5 finds a file damaged where it is read, and h5py says so by many an exception."""
    try:
        yield
    except PackError:
        raise
    except (OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise PackError(f"{path} is damaged ({in_one_line(error, 200)}); fetch it anew.") from error


def _open_hdf5(path: str) -> Any:
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise PackError("HDF5 packs need the package h5py; install it with `pip install h5py`.") from error
    if not os.path.isfile(path):
        raise PackError(f"{path} does not exist; give the path of an HDF5 pack.")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise PackError(f"{path} is not an HDF5 file that can be read ({error}); fetch it anew.") from error


# ── lists of clips ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read_list(packs: _OpenPacks, path: str) -> _Listed:
    with _refusing_damage(path):
        return _read_sound_list(packs, path)


def _read_sound_list(packs: _OpenPacks, path: str) -> _Listed:
    file = packs[path]
    is_index = "hdf5_path" in file
    dimensions = {"audio_name": 1, "target": 2}
    _check_shapes(path, file, {**dimensions, **({"hdf5_path": 1, "index_in_hdf5": 1} if is_index else {"waveform": 2})})
    names = file["audio_name"][:].astype(bytes)
    kept = np.flatnonzero(names != b"")
    if len(kept) < len(names):
        logger.info("%s: %d rows are empty, and left out.", path, len(names) - len(kept))
    classes = _read_classes(file["target"])
    rows = file["index_in_hdf5"][:].astype(np.int64)[kept] if is_index else kept
    paths = _find_packs(file["hdf5_path"][:].astype(bytes)[kept], path) if is_index else [path] * len(kept)
    _check_waveforms(packs, paths, rows)
    return _Listed(names[kept], paths, rows, [classes[row] for row in kept], file["target"].shape[1])


def _check_shapes(path: str, file: Any, dimensions: Mapping[str, int]) -> None:
    missing = [name for name in dimensions if name not in file]
    if missing:
        raise PackError(
            f"{path} lacks {' and '.join(missing)}; it holds {', '.join(file) or 'nothing'}. Give a pack of PANNs with "
            "waveforms, or an index of such packs."
        )
    groups = [name for name in dimensions if not hasattr(file[name], "shape")]
    if groups:
        raise PackError(f"{path} has the group {groups[0]} where numbers are needed; fetch it anew.")
    shapes = {name: tuple(file[name].shape) for name in dimensions}
    right = all(len(shapes[name]) == number for name, number in dimensions.items())
    if not right or len({shape[0] for shape in shapes.values()}) > 1:
        found = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise PackError(
            f"{path} has the shapes {found}; audio_name (clips,), waveform (clips, samples) and target "
            "(clips, classes) are needed."
        )
    for name in dimensions:
        if _bytes_at_once(file[name]) > MAX_BYTES_AT_ONCE:
            raise PackError(f"{path} claims the shape {shapes[name]} for {name}, which no pack has; fetch it anew.")


def _bytes_at_once(values: Any) -> int:
    """What one read of them takes: lists are read whole, targets in blocks, waveforms row by row."""
    rows = len(values) if values.ndim == 1 else ROWS_AT_ONCE if values.dtype.itemsize == 1 else 1
    return rows * values.dtype.itemsize * math.prod(values.shape[1:])


def _read_classes(target: Any) -> list[tuple[int, ...]]:
    """The classes of each clip; some packs have 0 and 1 as numbers."""
    classes: list[tuple[int, ...]] = []
    for begin in range(0, len(target), ROWS_AT_ONCE):
        block = target[begin : begin + ROWS_AT_ONCE] > 0.5  # (rows, classes)
        classes += [tuple(np.flatnonzero(row).tolist()) for row in block]
    return classes


def _find_packs(said: np.ndarray, index: str) -> list[str]:
    found = {path: _find_pack(_text(path), Path(index)) for path in np.unique(said)}
    return [found[path] for path in said]


def _find_pack(said: str, index: Path) -> str:
    """The pack as the index names it, or what lies near the index and ends as that path does, as long as possible."""
    if os.path.isfile(said):
        return said
    parts = PurePosixPath(said.replace("\\", "/")).parts
    for first in range(len(parts)):
        for folder in index.absolute().parents:
            path = folder.joinpath(*parts[first:])
            if path.is_file() and path != index.absolute():  # index and pack may have the same name
                return str(path)
    said = in_one_line(said)
    raise PackError(f"{index} names the pack {said}, which is not there, nor near the index; put it beside the index.")


def _check_waveforms(packs: _OpenPacks, paths: Sequence[str], rows: np.ndarray) -> None:
    last_row: dict[str, int] = {}
    for path, row in zip(paths, rows.tolist(), strict=True):
        last_row[path] = max(row, last_row.get(path, 0))
    for path, row in last_row.items():
        _check_shapes(path, packs[path], {"waveform": 2})
        waveform = packs[path]["waveform"]
        if waveform.dtype.name not in SUBTYPES:
            raise PackError(f"{path} has waveforms of {waveform.dtype}; int16 is needed, or float32.")
        if row >= len(waveform):
            raise PackError(f"{path} has {len(waveform)} clips, and its index asks for row {row}; make the index anew.")
        packs.rate_of(path)


def _name_classes(path: str, num_classes: int, given: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids and names."""
    if given is None:
        mids = audioset_mids()
        ids, names = tuple(mids), tuple(mids.values())
    else:
        ids = names = tuple(given)
    if len(names) != num_classes:
        whose = "AudioSet has" if given is None else "label_names are"
        raise PackError(f"{path} has {num_classes} classes, and {whose} {len(names)}; give label_names in their order.")
    return ids, names


def _text(name: bytes) -> str:
    return bytes(name).decode("utf-8", "replace")


__all__ = ["PackError", "PackRows"]
