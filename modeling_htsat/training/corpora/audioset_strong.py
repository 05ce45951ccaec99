"""AudioSet's strong labels: when which of 456 sounds occur in some 120,000 of its ten-second clips."""

import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

from ...audio_htsat import list_audio_files
from ...tables import in_one_line
from ..clips import Corpus, make_clip
from .listing import check_missing, existing, make_corpus, read_lines, read_table

TABLES = {"train": "audioset_train_strong.tsv", "test": "audioset_eval_strong.tsv"}
COLUMNS = ("segment_id", "start_time_seconds", "end_time_seconds", "label")
NAMES = "mid_to_display_name.tsv"


def load_audioset_strong(
    location: str | os.PathLike[str],
    split: str,
    *,
    audio_folder: str | os.PathLike[str] | None = None,
    validation_share: float = 0.0,
    split_seed: int = 0,
    skip_missing: bool = False,
) -> Corpus:
    """The tables as Google publishes them, and the clips, which one has to have.

    Classes are numbered in the order of `mid_to_display_name.tsv`. A segment is called `b0RFKhbpFJA_30000`: the id of
    a video and where the ten seconds begin, in milliseconds.

    Args:
        location: The folder with audioset_train_strong.tsv, audioset_eval_strong.tsv and mid_to_display_name.tsv.
        audio_folder: Where the clips are, in any sub-folders, by default `audio`; each is named by its segment or by
            its video, perhaps with a Y before it (`b0RFKhbpFJA_30000.flac`, `Yb0RFKhbpFJA.wav`).
        validation_share: Of the videos for training; AudioSet has none for validation.
        split_seed: Another seed holds out other videos.
        skip_missing: Go on where segments are listed that are not there: videos vanish.
    """
    folder = existing(location, NAMES)
    sounds = {path.stem: path for path in list_audio_files(existing(audio_folder or folder / "audio"))}
    names = _read_names(folder / NAMES)
    source = "test" if split == "test" else "train"
    existing(folder, TABLES[source])
    clips = _read_clips(folder / TABLES[source], names, sounds, skip_missing)
    return make_corpus(
        clips,
        split,
        [source] * len(clips),
        label_names=list(names.values()),
        groups=[_video(clip["video_id"]) for clip in clips],
        validation_share=validation_share,
        split_seed=split_seed,
    )


def _read_names(path: Path) -> dict[str, str]:
    """MID -> name; a name that two classes have is told apart by the MID."""
    lines = [line.split("\t") for line in read_lines(path)]
    names: dict[str, str] = {}
    for mid, name in (line for line in lines if len(line) == 2 and line[0] != "mid"):
        names[mid.strip()] = f"{name.strip()} ({mid.strip()})" if name.strip() in names.values() else name.strip()
    if not names:
        raise ValueError(f"{path} has no lines with a MID, a tab and a name; download it again.")
    return names


def _read_clips(table: Path, names: dict[str, str], sounds: dict[str, Path], skip: bool) -> list[dict[str, Any]]:
    events: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
    for number, row in enumerate(read_table(table, COLUMNS), start=2):
        segment, begin, end, mid = (row[column] for column in COLUMNS)
        if mid not in names:
            label = in_one_line(mid, 80)
            raise ValueError(f"{table}, row {number}: the label {label!r} is not in {NAMES}; take both of one release.")
        events[segment].append((*_times(begin, end, f"{table}, row {number}"), mid))
    found = {segment: _find(segment, sounds) for segment in events}
    folder = Path(os.path.commonpath([path.parent for path in sounds.values()]))
    check_missing([name for name, path in found.items() if path is None], len(found), folder, table, skip)
    return [_clip(name, path, events[name], names) for name, path in found.items() if path is not None]


def _times(begin: str, end: str, place: str) -> tuple[float, float]:
    try:
        times = float(begin), float(end)
    except ValueError:
        times = (math.nan, math.nan)
    if not 0 <= times[0] <= times[1] < math.inf:
        given = in_one_line(f"{begin!r} and {end!r}", 80)
        raise ValueError(f"{place}: {given} must be seconds, the end not before the beginning; correct the row.")
    return times


def _find(segment: str, sounds: dict[str, Path]) -> Path | None:
    stems = (segment, f"Y{segment}", _video(segment), f"Y{_video(segment)}")
    return next((sounds[stem] for stem in stems if stem in sounds), None)


def _video(segment: str) -> str:
    return segment.rpartition("_")[0]  # ids of videos may themselves have a _


def _clip(segment: str, path: Path, events: list[tuple[float, float, str]], names: dict[str, str]) -> dict[str, Any]:
    mids = sorted({mid for _, _, mid in events})
    named_events = [(begin, end, names[mid]) for begin, end, mid in events]
    return make_clip(segment, path, mids, [names[mid] for mid in mids], named_events)


__all__ = ["load_audioset_strong"]
