"""Any data set with a column of sounds and a column of classes: on the Hub, or as the library `datasets` saved it."""

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import (
    Audio,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    LargeList,
    List,
    concatenate_datasets,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError
from datasets.utils.file_utils import xopen

from ..clips import CLIP_FEATURES, Corpus, DatasetRows, SubsetRows
from .listing import (
    by_split,
    given_names,
    indices_of_split,
    name_classes,
    name_or_folder,
    nearest,
)


def load_hub(
    location: str | os.PathLike[str],
    split: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    audio_column: str = "audio",
    label_column: str = "label",
    label_names: Sequence[str] | None = None,
    validation_share: float = 0.1,
    test_share: float = 0.1,
    split_seed: int = 0,
) -> Corpus:
    """Classes are a `ClassLabel`, a name, a list of either, or numbers that `label_names` gives names.

    Clips are called after their split and their place in it. Splits that the data set lacks are held out from its
    training clips, for testing only where it has no others.

    Args:
        location: A name on the Hub, a folder of data files, or one that `save_to_disk` wrote.
        config: Of the data set, where it has several.
        revision: Of the Hub's repository: a branch, tag or commit.
        audio_column: Where the sounds are.
        label_column: Where the classes are.
        label_names: The classes, in the order in which a new model numbers them.
        validation_share: Of the clips of each class.
        test_share: Of the clips of each class.
        split_seed: Another seed holds out other clips.
    """
    loaded = _load(location, config, revision)
    known = by_split(loaded)
    source = split if split in known else "train"
    if source not in known:
        raise ValueError(f"{location} has no clips for {split}, only for {', '.join(loaded)}; choose one of these.")
    features = known[source].features
    _check_columns(location, features, audio_column, label_column)
    names_in_order = given_names(label_names) if label_names else None
    names_of_numbers = _class_names(features[label_column]) or names_in_order
    clips = {name: _describe(name, data, label_column, names_of_numbers) for name, data in known.items()}
    others = [name for name in known if name != source]
    indices = indices_of_split(
        list(chain(clips[source], *(clips[name] for name in others))),
        split,
        list(chain.from_iterable([name] * len(clips[name]) for name in [source, *others])),
        validation_share=validation_share,
        test_share=test_share,
        split_seed=split_seed,
    )
    rows = _rows(known[source], audio_column, clips[source])
    class_names = name_classes(chain.from_iterable(clips.values()), names_in_order or names_of_numbers)
    return Corpus(SubsetRows(rows, indices), class_names)


def _load(location: str | os.PathLike[str], config: str | None, revision: str | None) -> dict[str, Dataset]:
    folder = Path(name_or_folder(location))
    try:
        if any((folder / name).exists() for name in ("state.json", "dataset_dict.json")):
            loaded = load_from_disk(folder)
        else:
            loaded = _build(name_or_folder(location), config, revision)
    except Exception as error:  # what the builders of all formats raise is anybody's guess
        # `datasets` says that it could not, and keeps what happened to itself.
        reason = error.__cause__ if isinstance(error, DatasetGenerationError) and error.__cause__ else error
        raise ValueError(
            f"{location} cannot be loaded as a data set: {str(reason) or type(reason).__name__}"
        ) from error
    return dict(loaded) if isinstance(loaded, DatasetDict) else {"train": loaded}


def _build(name: str, config: str | None, revision: str | None) -> Any:
    """As `load_dataset` does, which needs torchcodec for the sounds of folders and archives, though it decodes none."""
    builder = load_dataset_builder(name, config, revision=revision)
    find_splits = builder._split_generators

    def find_splits_and_features(*arguments: Any, **options: Any) -> Any:
        splits = find_splits(*arguments, **options)
        for feature in (builder.info.features or {}).values():
            if isinstance(feature, Audio):
                feature.encode_example = _still_encoded
        return splits

    builder._split_generators = find_splits_and_features
    builder.download_and_prepare()
    return builder.as_dataset()


def _still_encoded(sound: Any) -> dict[str, Any]:
    """A file, or the bytes of one from an archive; what is in a zip archive is read from there."""
    content, path = (sound.get("bytes"), sound.get("path")) if isinstance(sound, dict) else (None, str(sound))
    inside, is_inside, archive = (path or "").partition("::")
    if content is None and is_inside and inside.startswith("zip://") and Path(archive).is_file():
        with xopen(path, "rb") as file:
            content, path = file.read(), inside.removeprefix("zip://")
    return {"bytes": content, "path": path}


def _check_columns(location: Any, features: Features, audio_column: str, label_column: str) -> None:
    for option, column in (("audio_column", audio_column), ("label_column", label_column)):
        if column not in features:
            raise ValueError(f"{location} has no column {column!r} ({option}); {nearest(column, features)}")
    audio = features[audio_column]
    if not isinstance(audio, Audio) and not (isinstance(audio, dict) and {"bytes", "path"} <= set(audio)):
        raise ValueError(
            f"The column {audio_column!r} of {location} holds {audio}; sounds are a column of the type Audio, or bytes "
            "and path. Files that are listed by name load as the corpus `table`."
        )


def _class_names(feature: Any) -> list[str] | None:
    inner = feature.feature if isinstance(feature, (List, LargeList)) else feature
    return list(inner.names) if isinstance(inner, ClassLabel) else None


def _describe(split: str, data: Dataset, label_column: str, label_names: Sequence[str] | None) -> list[dict[str, Any]]:
    """The clips without their sounds; a split without the column is one whose labels are not published."""
    column = data.select_columns([label_column]).to_dict()[label_column] if label_column in data.features else None
    names = [_names(value, label_names) for value in column or [None] * len(data)]
    return [
        {"video_id": f"{split}-{index:07d}", "labels": own, "human_labels": own, "events": None}
        for index, own in enumerate(names)
    ]


def _names(value: Any, label_names: Sequence[str] | None) -> list[str] | None:
    if value is None or value == -1:  # -1 is the Hub's way to say that a class is kept secret
        return None
    values = value if isinstance(value, list) else [value]
    return [_name(item, label_names) for item in values]


def _name(value: Any, label_names: Sequence[str] | None) -> str:
    if isinstance(value, str):
        return value
    if label_names is None or not isinstance(value, int) or not 0 <= value < len(label_names):
        raise ValueError(
            f"A clip has the label {value!r}, which has no name; give label_names in the order of the numbers, or name "
            "another label_column."
        )
    return label_names[value]


def _rows(data: Dataset, audio_column: str, clips: Sequence[dict[str, Any]]) -> DatasetRows:
    """The sounds stay where they are, in the Arrow files of the data set; the rest is put beside them."""
    audio = data.with_format(None).select_columns([audio_column]).rename_columns({audio_column: "audio"})
    columns = {name: feature for name, feature in CLIP_FEATURES.items() if name != "audio"}
    beside = {name: [clip[name] for clip in clips] for name in columns}
    beside_it = Dataset.from_dict(beside, features=Features(columns))
    return DatasetRows(concatenate_datasets([audio.cast_column("audio", Audio(decode=False)), beside_it], axis=1))


__all__ = ["load_hub"]
