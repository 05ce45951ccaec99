"""The synthetic benchmark that `htsat soundscapes` makes: ten-second scenes whose events are known to the sample."""

import os
from pathlib import Path
from typing import Any

from ...tables import read_events
from ..clips import SPLITS, Corpus
from .listing import checked_split, existing, find_listed, make_corpus, make_strong_clip, read_description

LABELS = ("strong", "weak")


def load_soundscapes(
    location: str | os.PathLike[str],
    split: str,
    *,
    labels: str = "strong",
    validation_share: float = 0.0,
    split_seed: int = 0,
) -> Corpus:
    """Soundscapes as FLAC files; those in parquet are read as the corpus `audioset`.

    Args:
        location: What `htsat soundscapes` wrote, the split being its `--split-name`; or a folder that holds several of
            these in `train/`, `validation/` and `test/`.
        labels: "strong": which events there are, and when; "weak": only which classes occur.
        validation_share: Of the training clips, where there are none made for validation.
        split_seed: Another seed holds out other clips.
    """
    if labels not in LABELS:
        raise ValueError(f"The labels are {labels!r}; they must be {' or '.join(LABELS)}.")
    folders = _folders(existing(location))
    source = split if split in folders else "train"
    if source not in folders:
        raise ValueError(f"{location} has no soundscapes for {split}, only for {', '.join(folders)}; make some.")
    folder, info = folders[source]
    existing(folder, "audio", "events.tsv")
    events = read_events(folder / "events.tsv")
    paths = find_listed(events, folder / "audio", folder / "events.tsv")
    clips = [make_strong_clip(name, path, events[name]) for name, path in paths.items()]
    if labels == "weak":
        clips = [{**clip, "events": None} for clip in clips]
    share = 0.0 if "validation" in folders else validation_share
    given = [source] * len(clips)
    return make_corpus(clips, split, given, label_names=info["labels"], validation_share=share, split_seed=split_seed)


def _folders(location: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """The folder and the description of each split that was made."""
    if (location / "dataset_info.json").exists():
        info = _description(location)
        name = str(info["split_name"])
        return {name if name in SPLITS else checked_split(name): (location, info)}
    folders = {name: (location / name, _description(location / name)) for name in SPLITS if (location / name).is_dir()}
    if not folders:
        raise ValueError(f"{location} holds no dataset_info.json; give a folder that `htsat soundscapes` wrote.")
    _check_different(folders)
    return folders


def _description(folder: Path) -> dict[str, Any]:
    existing(folder, "dataset_info.json")
    info = read_description(folder / "dataset_info.json")
    if info.get("format") != "flac" or "labels" not in info or "split_name" not in info:
        raise ValueError(
            f"{folder} holds no soundscapes in FLAC files; load parquet as the corpus `audioset`, or make soundscapes "
            "with `htsat soundscapes`."
        )
    return info


def _check_different(folders: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """The same seed and split name make the same clips, on which no model can be tested that has heard them."""
    seen: dict[tuple[Any, Any], Path] = {}
    for folder, info in folders.values():
        made_from = (str(info.get("seed")), str(info["split_name"]))
        other = seen.setdefault(made_from, folder)
        if other != folder:
            raise ValueError(
                f"{other} and {folder} were both made from the seed {made_from[0]} and the split name "
                f"{made_from[1]!r}, so they hold the same clips; make one with another --split-name."
            )


__all__ = ["load_soundscapes"]
