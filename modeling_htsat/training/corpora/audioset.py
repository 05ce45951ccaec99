"""AudioSet: two million ten-second clips in 527 classes, as parquet shards or as the HDF5 packs of PANNs.

Whatever else lies in shards with the same columns is read by the same function: soundscapes, and what `htsat prepare`
wrote.
"""

import csv
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetBuilder, load_dataset_builder

from ...labels import HERE as LABELS_FOLDER
from ..clips import ClipRows, Corpus, DatasetRows, SubsetRows
from .listing import (
    by_split,
    existing,
    given_names,
    indices_of_split,
    name_classes,
    name_or_folder,
    nearest,
    read_description,
    repeated_names,
)

logger = logging.getLogger(__name__)

# PANNs' names of packs and indexes, of which the first that are there belong to a part.
# https://github.com/qiuqiangkong/audioset_tagging_cnn
BALANCED_PACKS, UNBALANCED_PACKS = ("balanced_train*.h5",), ("unbalanced_train*.h5", "unbalanced_train/*.h5")
PACKS = {
    "balanced": (BALANCED_PACKS,),
    "unbalanced": (UNBALANCED_PACKS,),
    "full": (("full_train*.h5",), BALANCED_PACKS + UNBALANCED_PACKS),
}
EVALUATION_PACKS = ("eval*.h5",)


def audioset_mids() -> dict[str, str]:
    """MID -> name of AudioSet's classes, in the order of its indices."""
    with (LABELS_FOLDER / "audioset.csv").open(encoding="utf-8", newline="") as file:
        return {row["mid"]: row["display_name"] for row in csv.DictReader(file)}


def load_audioset(
    location: str | os.PathLike[str],
    split: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
    cached_groups: int = 4,
    label_names: Sequence[str] | None = None,
    validation_share: float = 0.0,
    split_seed: int = 0,
) -> Corpus:
    """Parquet shards with the columns of `agkphysics/AudioSet`, on the Hub or in a folder.

    The ids of AudioSet's classes get AudioSet's names, in AudioSet's order. Other classes are those of
    `dataset_info.json` in the folder, in its order, or else the names that occur, sorted.

    Args:
        location: "agkphysics/AudioSet", another name on the Hub, or a folder.
        config: Of the data set: balanced, unbalanced or full for AudioSet.
        revision: Of the Hub's repository: a branch, tag or commit.
        streaming: Read the shards where they are, row group by row group; otherwise all splits are first fetched,
            and copied into the cache of `datasets`.
        cached_groups: So many row groups of a stream stay in memory: as many as the run shuffles together.
        label_names: The classes, in the order in which a new model numbers them.
        validation_share: Of the training clips, where the data set has none for validation, as AudioSet has none.
        split_seed: Another seed holds out other clips.
    """
    builder = _builder(location, config, revision)
    files = by_split({name: (name, list(paths)) for name, paths in builder.config.data_files.items()})
    source = split if split in files else "train"
    if source not in files:
        raise ValueError(f"{location} has no clips for {split}, only for {', '.join(files) or 'none'}; choose another.")
    rows = _stream(files[source][1], cached_groups) if streaming else _load(builder, files[source][0])
    if label_names is None:
        label_names = _described_labels(Path(name_or_folder(location)))
    rows, names = _with_names(rows, label_names)
    return _divided(rows, names, split, list(files), validation_share, split_seed)


def _builder(location: str | os.PathLike[str], config: str | None, revision: str | None) -> DatasetBuilder:
    try:
        builder = load_dataset_builder(name_or_folder(location), config, revision=revision)
    except Exception as error:  # no such name or config, no network, nothing in the folder, and what else there is
        raise ValueError(f"{location} cannot be loaded as a data set: {error}") from error
    if not builder.config.data_files:  # older releases of datasets take any copy in their cache for what is not found
        of_revision = "" if revision is None else f" of the revision {revision!r}"
        raise ValueError(f"{location} cannot be loaded as a data set: there are no files{of_revision}.")
    files = [path for paths in builder.config.data_files.values() for path in paths]
    strangers = [path for path in files if not path.endswith(".parquet")]
    if strangers:
        raise ValueError(
            f"{location} is not made of parquet shards ({strangers[0]}); try the corpus `folders`, `table` or `hub`."
        )
    return builder


def _stream(files: Sequence[str], cached_groups: int) -> ClipRows:
    from ..shards import ShardRows

    return ShardRows(files, cached_groups)


def _load(builder: DatasetBuilder, split: str) -> ClipRows:
    builder.download_and_prepare()
    return DatasetRows(builder.as_dataset(split=split))


def _described_labels(folder: Path) -> Sequence[str] | None:
    path = folder / "dataset_info.json"
    return read_description(path).get("labels") if path.exists() else None


def _divided(
    rows: ClipRows,
    names: tuple[str, ...],
    split: str,
    known_splits: Sequence[str],
    validation_share: float,
    split_seed: int,
) -> Corpus:
    """The clips of one split, which are all that there are, or some of those for training."""
    source = split if split in known_splits else "train"
    share = 0.0 if "validation" in known_splits else validation_share
    if source == split and (source != "train" or not share):
        return Corpus(rows, names)  # millions of clips need not be looked at
    clips = rows.without_audio()
    indices = indices_of_split(clips, split, [source] * len(clips), validation_share=share, split_seed=split_seed)
    return Corpus(SubsetRows(rows, indices), names)


def _with_names(rows: ClipRows, label_names: Sequence[str] | None) -> tuple[ClipRows, tuple[str, ...]]:
    """The clips with AudioSet's names if they have AudioSet's ids, and the names of all classes."""
    clips, mids = rows.without_audio(), audioset_mids()
    if repeated := repeated_names(clips):
        logger.warning("%d clips share their names, for example %r; what is kept by name mixes them.", *repeated)
    found = {label for clip in clips for label in clip["labels"] or ()}
    if not found or not found <= mids.keys():
        return rows, name_classes(clips, label_names)
    names = name_classes((_named(clip, mids) for clip in clips), label_names or list(mids.values()))
    return NamedByMid(rows, mids), names


class NamedByMid:
    """Clips whose classes have AudioSet's names, whatever names they came with."""

    def __init__(self, rows: ClipRows, name_of_mid: Mapping[str, str]) -> None:
        self._rows, self._name_of_mid = rows, name_of_mid
        self.group_sizes = rows.group_sizes

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _named(self._rows[index], self._name_of_mid)

    def without_audio(self) -> list[dict[str, Any]]:
        return [_named(row, self._name_of_mid) for row in self._rows.without_audio()]


def _named(clip: dict[str, Any], name_of_mid: Mapping[str, str]) -> dict[str, Any]:
    return clip if clip["labels"] is None else {**clip, "human_labels": [name_of_mid[mid] for mid in clip["labels"]]}


def load_hdf5(
    location: str | os.PathLike[str],
    split: str,
    *,
    config: str = "balanced",
    label_names: Sequence[str] | None = None,
    sampling_rate: int | None = None,
    validation_share: float = 0.0,
    split_seed: int = 0,
) -> Corpus:
    """AudioSet in the packs of PANNs, or the indexes of these, which the authors' code reads too.

    Args:
        location: The folder with `balanced_train.h5`, `eval.h5` and `unbalanced_train/`; or one pack or index, which
            is then what the split says that it is.
        config: balanced, unbalanced or full: what training is on.
        label_names: The classes in the order of the targets, if they are not AudioSet's.
        sampling_rate: Of packs that do not say it.
        validation_share: Of the training clips; AudioSet has none for validation.
        split_seed: Another seed holds out other clips.
    """
    from ..packs import PackRows

    if config not in PACKS:
        raise ValueError(f"The packs have no config {config!r}; {nearest(config, PACKS)}")
    path, source = existing(location), "test" if split == "test" else "train"
    files = [path] if path.is_file() else _packs(path, (EVALUATION_PACKS,) if source == "test" else PACKS[config])
    rows = PackRows(files, None if label_names is None else given_names(label_names), sampling_rate)
    return _divided(rows, rows.label_names, split, [source], validation_share, split_seed)


def _packs(folder: Path, choices: Iterable[Sequence[str]]) -> list[Path]:
    """The files of the first choice that is there."""
    for patterns in choices:
        files = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
        if files:
            return files
    wanted = " or ".join(pattern for patterns in choices for pattern in patterns)
    raise ValueError(f"{folder} holds no {wanted}; give the folder of the packs, or one pack.")


__all__ = ["audioset_mids", "load_audioset", "load_hdf5"]
