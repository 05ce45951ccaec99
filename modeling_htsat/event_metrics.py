"""Scores of sound events, as pure functions of plain tables: intersection, collar and segment F1, and PSDS.

Words, as they are used throughout:
    event                   (onset_seconds, offset_seconds, label)
    truth, detections       {filename: [event, ...]}; a file without events has an empty list
    durations               {filename: seconds}

The scores agree with the packages that made the published numbers: the intersection F1 with psds_eval 0.5.3, the collar
and segment F1 with sed_eval 0.2.1 as the DCASE baseline calls it. These packages leave some classes out of their macro
average, which flatters a system that never finds a class; so every result also holds `macro_all_classes`, the mean over
all classes of the truth, and `left_out_of_macro`, the names of the classes that `macro` does without.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Event = tuple[float, float, str]
EventTable = Mapping[str, Sequence[Event]]

PSDS_SCENARIOS: dict[int, dict[str, Any]] = {
    1: {
        "dtc_threshold": 0.7,
        "gtc_threshold": 0.7,
        "cttc_threshold": None,
        "alpha_ct": 0.0,
        "alpha_st": 1.0,
        "max_efpr": 100.0,
    },
    2: {
        "dtc_threshold": 0.1,
        "gtc_threshold": 0.1,
        "cttc_threshold": 0.3,
        "alpha_ct": 0.5,
        "alpha_st": 1.0,
        "max_efpr": 100.0,
    },
}


# ── events ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def intersection_f1(
    truth: EventTable,
    detections: EventTable,
    durations: Mapping[str, float] | None = None,
    detection_tolerance: float = 0.5,
    truth_tolerance: float = 0.5,
) -> dict[str, Any]:
    """F1 by overlap, as `psds_eval.PSDSEval.compute_macro_f_score` computes it.

    A detection is accepted when at least `detection_tolerance` of it lies on events of its class, and an event is found
    when accepted detections cover at least `truth_tolerance` of it. A detection that is not accepted is a false
    positive, unless it lies wholly beyond its file's duration. Events without length are dropped; overlapping events of
    one class in one file are an error here, as in psds_eval. Classes without a single found event do not enter `macro`.
    """
    _check_share(detection_tolerance=detection_tolerance, truth_tolerance=truth_tolerance)
    sides = _two_sides(_without_empty_events(truth), _without_empty_events(detections), durations)
    _refuse_overlaps("truth", sides.truth, sides)
    _refuse_overlaps("detections", sides.detections, sides)
    found, accepted = _found_and_accepted(sides.truth, sides.detections, detection_tolerance, truth_tolerance)
    hits = sides.num_per_label(sides.truth.groups[found])
    wrong = ~accepted & _inside_files(sides, durations)
    false_positives = sides.num_per_label(sides.detections.groups[wrong])
    misses = sides.num_per_label(sides.truth.groups[~found])
    criterion = (
        f"Intersection: a detection is right when at least {detection_tolerance:.0%} of it lies on events of its "
        f"class; an event is found when right detections cover at least {truth_tolerance:.0%} of it. "
        "The macro average leaves out classes without a found event, as psds_eval does."
    )
    settings = {"detection_tolerance": detection_tolerance, "truth_tolerance": truth_tolerance}
    return _result(sides, hits, false_positives, misses, hits > 0, criterion, settings)


def collar_f1(
    truth: EventTable,
    detections: EventTable,
    onset_collar_seconds: float = 0.2,
    offset_collar_seconds: float = 0.2,
    offset_collar_ratio: float = 0.2,
) -> dict[str, Any]:
    """F1 by onset and offset, as `sed_eval.sound_event.EventBasedMetrics` with optimal matching computes it.

    A detection matches an event of its class when the onsets differ by at most the onset collar and the offsets by at
    most the larger of the offset collar and `offset_collar_ratio` of the event; each event takes one detection, so that
    most pairs come about. Times are compared unrounded, as in sed_eval: 4.4 - 4.2 exceeds 0.2 in floating point.
    """
    _check_collars(onset_collar_seconds, offset_collar_seconds, offset_collar_ratio)
    sides = _two_sides(truth, detections, None)
    events, candidates = _close_pairs(
        sides.truth, sides.detections, onset_collar_seconds, offset_collar_seconds, offset_collar_ratio
    )
    matched = _matched_rows(events, candidates, len(sides.truth.onsets), len(sides.detections.onsets))
    hits = sides.num_per_label(sides.truth.groups[matched])
    num_events, num_detections = sides.num_per_label(sides.truth.groups), sides.num_per_label(sides.detections.groups)
    criterion = (
        f"Collar: onsets at most {onset_collar_seconds:g} s apart, offsets at most {offset_collar_seconds:g} s or "
        f"{offset_collar_ratio:.0%} of the event, whichever is larger; each event matches one detection."
    )
    settings = {
        "onset_collar_seconds": onset_collar_seconds,
        "offset_collar_seconds": offset_collar_seconds,
        "offset_collar_ratio": offset_collar_ratio,
    }
    return _result(sides, hits, num_detections - hits, num_events - hits, num_events > 0, criterion, settings)


def segment_f1(
    truth: EventTable,
    detections: EventTable,
    durations: Mapping[str, float] | None = None,
    segment_seconds: float = 1.0,
) -> dict[str, Any]:
    """F1 of activity per segment, as `sed_eval.sound_event.SegmentBasedMetrics` computes it.

    An event fills every segment that it touches. With `durations`, segments beyond a file's last one do not count; the
    DCASE baseline passes none. Classes that are never detected do not enter `macro`, as in sed_eval by default.
    """
    if not 0 < segment_seconds < math.inf:
        raise ValueError(f"segment_seconds must be a positive number; received {segment_seconds}.")
    sides = _two_sides(truth, detections, durations)
    limits = _segment_limits(sides, durations, segment_seconds)
    stride = 1 + math.ceil(_last_offset(truth, detections) / segment_seconds)
    in_truth = _active_segments(sides.truth, limits, segment_seconds, stride)
    detected = _active_segments(sides.detections, limits, segment_seconds, stride)
    hits = sides.num_per_label(np.intersect1d(in_truth, detected, assume_unique=True) // stride)
    num_true, num_detected = sides.num_per_label(in_truth // stride), sides.num_per_label(detected // stride)
    criterion = (
        f"Segment: activity in segments of {segment_seconds:g} s, each filled by any event that touches it. "
        "The macro average leaves out classes that are never detected, as sed_eval does."
    )
    counted = (num_true > 0) & (num_detected > 0)
    return _result(
        sides, hits, num_detected - hits, num_true - hits, counted, criterion, {"segment_seconds": segment_seconds}
    )


def merge_overlapping_events(table: EventTable) -> dict[str, list[Event]]:
    """The same table, with overlapping events of one class in one file joined to one; touching ones stay apart."""
    return {filename: _merged(events) for filename, events in table.items()}


def _merged(events: Sequence[Event]) -> list[Event]:
    merged: dict[str, list[Event]] = {}
    for onset, offset, label in sorted(events):
        of_label = merged.setdefault(label, [])
        if of_label and onset < of_label[-1][1]:
            of_label[-1] = (of_label[-1][0], max(of_label[-1][1], offset), label)
        else:
            of_label.append((onset, offset, label))
    return sorted(event for of_label in merged.values() for event in of_label)


class _Columns(NamedTuple):
    """Events as columns, ordered by group and time; a group is one label in one file."""

    groups: np.ndarray  # file index * number of labels + label index
    onsets: np.ndarray
    offsets: np.ndarray


class _TwoSides(NamedTuple):
    """Truth and detections of the same files, over the labels of the truth."""

    files: list[str]
    labels: list[str]
    truth: _Columns
    detections: _Columns
    labels_without_truth: dict[str, int]

    def num_per_label(self, groups: np.ndarray) -> np.ndarray:
        return np.bincount(groups % len(self.labels), minlength=len(self.labels))


def _two_sides(truth: EventTable, detections: EventTable, durations: Mapping[str, float] | None) -> _TwoSides:
    """Check both tables at the border and lay them out as columns."""
    _check_events("truth", truth)
    _check_events("detections", detections)
    _check_files(truth, detections, durations)
    labels = sorted({label for events in truth.values() for *_, label in events})
    if not labels:
        raise ValueError("The truth holds no event, so that no F1 is defined; add the files that have events.")
    detected_labels = Counter(label for events in detections.values() for *_, label in events)
    strangers = {label: detected_labels[label] for label in sorted(detected_labels.keys() - set(labels))}
    files = sorted(set(truth) | set(detections))
    return _TwoSides(files, labels, _columns(truth, files, labels), _columns(detections, files, labels), strangers)


def _columns(table: EventTable, files: Sequence[str], labels: Sequence[str]) -> _Columns:
    """Events of the given labels, ordered by file, label, onset and offset."""
    label_index = {label: index for index, label in enumerate(labels)}
    rows = [
        (file_index * len(labels) + label_index[label], onset, offset)
        for file_index, filename in enumerate(files)
        for onset, offset, label in table.get(filename, ())
        if label in label_index
    ]
    rows.sort()
    groups = np.array([row[0] for row in rows], dtype=np.int64)
    onsets, offsets = (np.array([row[axis] for row in rows], dtype=np.float64) for axis in (1, 2))
    return _Columns(groups, onsets, offsets)


def _check_events(side: str, table: EventTable) -> None:
    for filename, events in table.items():
        for onset, offset, label in events:
            if not 0 <= onset <= offset < math.inf:
                raise ValueError(
                    f"The {side} of {filename!r} hold a {label!r} from {onset} to {offset} s; "
                    "an event needs finite times with 0 <= onset <= offset."
                )


def _check_files(truth: EventTable, detections: EventTable, durations: Mapping[str, float] | None) -> None:
    if durations is not None:
        for filename in (*truth, *detections):
            if filename not in durations:
                raise ValueError(f"{filename!r} has no duration; add it to the durations.")
        return
    for filename in detections:
        if filename not in truth:
            raise ValueError(
                f"{filename!r} has detections and is no file of the truth; add it there, with an empty list of events "
                "if it holds none."
            )


def _check_share(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share from 0 to 1; received {share}.")


def _check_collars(onset_collar_seconds: float, offset_collar_seconds: float, offset_collar_ratio: float) -> None:
    _check_share(offset_collar_ratio=offset_collar_ratio)
    for collar in (onset_collar_seconds, offset_collar_seconds):
        if not 0 <= collar < math.inf:
            raise ValueError(f"A collar is a number of seconds from 0 upwards; received {collar}.")


def _without_empty_events(table: EventTable) -> dict[str, list[Event]]:
    return {filename: [event for event in events if event[0] != event[1]] for filename, events in table.items()}


def _refuse_overlaps(side: str, events: _Columns, sides: _TwoSides) -> None:
    """psds_eval refuses them too, except for exact repetitions, which it counts one by one."""
    same_group = events.groups[1:] == events.groups[:-1]
    repeated = (events.onsets[1:] == events.onsets[:-1]) & (events.offsets[1:] == events.offsets[:-1])
    overlaps = np.flatnonzero(same_group & ~repeated & (events.onsets[1:] < events.offsets[:-1]))
    if overlaps.size:
        first = overlaps[0]
        file_index, label_index = divmod(int(events.groups[first]), len(sides.labels))
        raise ValueError(
            f"The {side} of {sides.files[file_index]!r} hold overlapping events of {sides.labels[label_index]!r}: "
            f"{events.onsets[first]:g} to {events.offsets[first]:g} s and {events.onsets[first + 1]:g} to "
            f"{events.offsets[first + 1]:g} s. The intersection criterion needs them apart; join them with "
            "`modeling_htsat.metrics.merge_overlapping_events`."
        )


def _found_and_accepted(
    truth: _Columns, detections: _Columns, detection_tolerance: float, truth_tolerance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Which events are found, and which detections are accepted, by the intersection criterion."""
    # Within a group nothing overlaps, so that onsets and offsets are both in order and a search finds each range.
    first = _first_at_or_after(detections.groups, detections.offsets, truth.groups, truth.onsets, strictly=True)
    last = _first_at_or_after(detections.groups, detections.onsets, truth.groups, truth.offsets)
    rows, columns = _pairs_in_ranges(first, last)
    shared_seconds = np.minimum(truth.offsets[rows], detections.offsets[columns]) - np.maximum(
        truth.onsets[rows], detections.onsets[columns]
    )
    share_of_detection = shared_seconds / (detections.offsets - detections.onsets)[columns]
    accepted = _reaches(share_of_detection, columns, len(detections.onsets), detection_tolerance)
    share_of_event = shared_seconds / (truth.offsets - truth.onsets)[rows]
    kept = accepted[columns]
    found = _reaches(share_of_event[kept], rows[kept], len(truth.onsets), truth_tolerance)
    return found, accepted


def _reaches(shares: np.ndarray, owners: np.ndarray, num_owners: int, tolerance: float) -> np.ndarray:
    """Which owners have at least one share, and shares that add up to the tolerance."""
    has_share = np.bincount(owners, minlength=num_owners) > 0
    return has_share & (_compensated_sums(shares, owners, num_owners) >= tolerance)


def _compensated_sums(values: np.ndarray, owners: np.ndarray, num_owners: int) -> np.ndarray:
    """Sum of each owner's values in their order, by Kahan's method.

    psds_eval sums with pandas, which sums so; the last bit decides when a tolerance is met exactly, as by 0.2 + 0.3.
    """
    order = np.argsort(owners, kind="stable")
    counts = np.bincount(owners, minlength=num_owners)
    starts = np.cumsum(counts) - counts
    totals, errors = np.zeros(num_owners), np.zeros(num_owners)
    for position in range(int(counts.max(initial=0))):
        active = np.flatnonzero(counts > position)
        corrected = values[order[starts[active] + position]] - errors[active]
        new_totals = totals[active] + corrected
        errors[active] = new_totals - totals[active] - corrected
        totals[active] = new_totals
    return totals


def _inside_files(sides: _TwoSides, durations: Mapping[str, float] | None) -> np.ndarray:
    """Which detections begin before their file ends: psds_eval counts only these as false positives."""
    if durations is None:
        return np.ones(len(sides.detections.onsets), dtype=bool)
    ends = np.array([durations[filename] for filename in sides.files], dtype=np.float64)
    return sides.detections.onsets < ends[sides.detections.groups // len(sides.labels)]


def _close_pairs(
    truth: _Columns,
    detections: _Columns,
    onset_collar_seconds: float,
    offset_collar_seconds: float,
    offset_collar_ratio: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of event and detection of one group whose onsets and offsets lie within the collars."""
    reach_seconds = onset_collar_seconds + 1e-6  # a little wide for rounding; the exact comparison follows
    first = _first_at_or_after(detections.groups, detections.onsets, truth.groups, truth.onsets - reach_seconds)
    last = _first_at_or_after(detections.groups, detections.onsets, truth.groups, truth.onsets + reach_seconds)
    rows, columns = _pairs_in_ranges(first, last)
    offset_collars = np.maximum(offset_collar_seconds, offset_collar_ratio * (truth.offsets - truth.onsets))
    close = np.abs(truth.onsets[rows] - detections.onsets[columns]) <= onset_collar_seconds
    close &= np.abs(truth.offsets[rows] - detections.offsets[columns]) <= offset_collars[rows]
    return rows[close], columns[close]


def _matched_rows(rows: np.ndarray, columns: np.ndarray, num_rows: int, num_columns: int) -> np.ndarray:
    """Which rows have a partner in a matching with as many pairs as possible."""
    if not rows.size:
        return np.zeros(num_rows, dtype=bool)
    from scipy.sparse import csr_matrix  # of a `csr_array`, scipy before 1.15 refuses the 64-bit indices
    from scipy.sparse.csgraph import maximum_bipartite_matching

    graph = csr_matrix((np.ones(rows.size, dtype=bool), (rows, columns)), shape=(num_rows, num_columns))
    return maximum_bipartite_matching(graph, perm_type="column") >= 0


def _segment_limits(
    sides: _TwoSides, durations: Mapping[str, float] | None, segment_seconds: float
) -> np.ndarray | None:
    """Number of segments of each group's file."""
    if durations is None:
        return None
    limits = [math.ceil(durations[filename] / segment_seconds) for filename in sides.files]
    return np.repeat(np.array(limits, dtype=np.int64), len(sides.labels))


def _active_segments(events: _Columns, limits: np.ndarray | None, segment_seconds: float, stride: int) -> np.ndarray:
    """Every segment that an event touches, once, as group * stride + segment."""
    first = np.floor(events.onsets / segment_seconds).astype(np.int64)
    last = np.ceil(events.offsets / segment_seconds).astype(np.int64)
    if limits is not None:
        last = np.minimum(last, limits[events.groups])
    rows, segments = _pairs_in_ranges(first, last)
    return np.unique(events.groups[rows] * stride + segments)


def _last_offset(*tables: EventTable) -> float:
    return max((offset for table in tables for events in table.values() for _, offset, _ in events), default=0.0)


def _first_at_or_after(
    groups: np.ndarray,
    times: np.ndarray,
    wanted_groups: np.ndarray,
    wanted_times: np.ndarray,
    strictly: bool = False,
) -> np.ndarray:
    """For each wanted time, the position of the first entry of its group that is not earlier (strictly: later).

    Times become ranks, so that group and time fit in one exact integer and one search serves all files.
    """
    clock = np.unique(times)
    stride = len(clock) + 1
    ranks = np.searchsorted(clock, times)
    wanted_ranks = np.searchsorted(clock, wanted_times, side="right" if strictly else "left")
    return np.searchsorted(groups * stride + ranks, wanted_groups * stride + wanted_ranks)


def _pairs_in_ranges(first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pair of a row and an index from `first[row]` up to, but without, `last[row]`."""
    lengths = np.maximum(last - first, 0)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    starts = np.cumsum(lengths) - lengths
    return rows, np.arange(len(rows)) - starts[rows] + first[rows]


def _result(
    sides: _TwoSides,
    hits: np.ndarray,
    false_positives: np.ndarray,
    misses: np.ndarray,
    in_macro: np.ndarray,
    criterion: str,
    settings: dict[str, float],
) -> dict[str, Any]:
    sizes = 2 * hits + false_positives + misses
    scores = 2 * hits / np.maximum(sizes, 1)  # an event without length may fill no segment: size 0, score 0
    counts = zip(hits.tolist(), false_positives.tolist(), misses.tolist(), strict=True)
    return {
        "macro": float(scores[in_macro].mean()) if in_macro.any() else 0.0,
        "macro_all_classes": float(scores.mean()),
        "per_class": dict(zip(sides.labels, scores.tolist(), strict=True)),
        "counts": {
            label: {"tp": tp, "fp": fp, "fn": fn} for label, (tp, fp, fn) in zip(sides.labels, counts, strict=True)
        },
        "left_out_of_macro": [label for label, kept in zip(sides.labels, in_macro, strict=True) if not kept],
        "labels_without_truth": sides.labels_without_truth,
        "criterion": criterion,
        "settings": settings,
    }


# ── PSDS ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def psds(
    truth: EventTable,
    durations: Mapping[str, float],
    score_tables: Mapping[str, tuple[Any, Any]],
    labels: Sequence[str],
    scenario: int = 1,
) -> dict[str, Any]:
    """Polyphonic sound detection score over all thresholds, for DCASE's scenario 1 or 2.

    `score_tables` holds for each file the step edges in seconds (steps + 1,) and the scores (steps, classes), with one
    column per label. Every file with a duration is evaluated and needs scores; files that the truth does not name hold
    no events. Classes without an event in the truth are not scored.
    """
    if scenario not in PSDS_SCENARIOS:
        raise ValueError(f"PSDS has the scenarios {sorted(PSDS_SCENARIOS)}; received {scenario!r}.")
    _check_score_tables(truth, durations, score_tables, labels)
    new_frame, compute_psds = _sed_scores_eval()
    with_truth = {label for events in truth.values() for *_, label in events}
    columns = [index for index, label in enumerate(labels) if label in with_truth]
    names = [labels[index] for index in columns]
    if scenario == 2 and len(names) < 2:
        raise ValueError("PSDS scenario 2 weighs confusions between classes; the truth holds events of one class only.")
    frames = {}
    for filename, (edges, scores) in score_tables.items():
        edges, scores = np.asarray(edges, dtype=np.float64), np.asarray(scores, dtype=np.float64)[:, columns]
        frames[filename] = new_frame(
            np.column_stack([edges[:-1], edges[1:], scores]), columns=["onset", "offset", *names]
        )
    lasting = _without_empty_events(truth)
    events = {filename: [tuple(event) for event in lasting.get(filename, ())] for filename in frames}
    settings = PSDS_SCENARIOS[scenario]
    value, per_class, *_ = compute_psds(frames, events, dict(durations), **settings)
    return {
        "psds": float(value),
        "per_class": {label: float(per_class[label]) for label in names},
        "criterion": f"PSDS, scenario {scenario}: area under the mean detection rate less its spread over classes, "
        f"up to {settings['max_efpr']:g} false positives per hour, over all thresholds.",
        "settings": {"scenario": scenario, **settings},
    }


def _sed_scores_eval() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """How to make a table of scores for sed_scores_eval, and its PSDS."""
    try:
        import pandas
        from sed_scores_eval.intersection_based import psds as compute_psds
    except ImportError as error:
        if error.name == "pkg_resources":  # dcase_util 0.2.20, which comes with sed_scores_eval, still imports it
            raise ImportError(
                'sed_scores_eval needs pkg_resources, which newer setuptools lack. Run `pip install "setuptools<81"`.'
            ) from error
        raise ImportError(
            f'PSDS needs the package sed_scores_eval ({error}). Install it with `pip install "modeling-htsat[eval]"`.'
        ) from error

    class WritableFrame(pandas.DataFrame):  # type: ignore[misc]
        """pandas 3 hands out read-only arrays, which the compiled part of sed_scores_eval 0.0.4 does not take."""

        @property
        def _constructor(self) -> type:
            return WritableFrame

        def to_numpy(self, *args: Any, **kwargs: Any) -> np.ndarray:
            return np.array(super().to_numpy(*args, **kwargs))

    return WritableFrame, compute_psds


def _check_score_tables(
    truth: EventTable,
    durations: Mapping[str, float],
    score_tables: Mapping[str, tuple[Any, Any]],
    labels: Sequence[str],
) -> None:
    _check_events("truth", truth)
    strangers = sorted({label for events in truth.values() for *_, label in events} - set(labels))
    if strangers:
        raise ValueError(f"The truth holds {strangers[0]!r}, which has no column of scores; labels are {list(labels)}.")
    if not any(truth.values()):
        raise ValueError("The truth holds no event, so that PSDS is not defined; add the files that have events.")
    _check_same_files(truth, durations, score_tables)
    for filename, (edges, scores) in score_tables.items():
        _check_score_table(filename, np.asarray(edges), np.asarray(scores), len(labels))
    apart = merge_overlapping_events(truth)
    for filename, events in truth.items():
        # sed_scores_eval refuses events that touch as well, since a detector cannot tell them apart.
        if len(apart[filename]) < len(events) or _touching(apart[filename]):
            raise ValueError(
                f"The truth of {filename!r} holds touching or overlapping events of one class; PSDS needs them joined."
            )


def _check_same_files(truth: Iterable[str], durations: Iterable[str], score_tables: Iterable[str]) -> None:
    timed = set(durations)
    for side, files in (("truth", set(truth)), ("score tables", set(score_tables))):
        if files - timed:
            raise ValueError(f"{min(files - timed)!r} is in the {side} and has no duration; add it to the durations.")
    if timed - set(score_tables):
        raise ValueError(f"{min(timed - set(score_tables))!r} has a duration and no scores; add its score table.")


def _check_score_table(filename: str, edges: np.ndarray, scores: np.ndarray, num_labels: int) -> None:
    if scores.ndim != 2 or scores.shape[1] != num_labels or edges.shape != (len(scores) + 1,):
        raise ValueError(
            f"The scores of {filename!r} need the shape (steps, {num_labels}) and their edges (steps + 1,); "
            f"received {scores.shape} and {edges.shape}."
        )
    if not (np.isfinite(scores).all() and np.isfinite(edges).all() and (np.diff(edges) > 0).all()):
        raise ValueError(f"The scores of {filename!r} must be finite and their edges must increase.")


def _touching(events: Sequence[Event]) -> bool:
    ends = {(offset, label) for _, offset, label in events}
    return any((onset, label) in ends for onset, _, label in events)


__all__ = [
    "PSDS_SCENARIOS",
    "Event",
    "EventTable",
    "collar_f1",
    "intersection_f1",
    "merge_overlapping_events",
    "psds",
    "segment_f1",
]
