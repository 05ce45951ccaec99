"""Event tables: what is read, what is refused and where, what is written, and the scores of one table by another."""

import csv
import json
import os

import pytest

from modeling_htsat import metrics, tables

HEADER = "filename\tonset\toffset\tevent_label\n"
REFERENCE = HEADER + "a.wav\t0.0\t4.0\tDog\na.wav\t6\t8\tDog\na.wav\t1\t3\tCat\nb.wav\t7\t9\tCat\nc.wav\t\t\t\n"
DETECTIONS = HEADER + "a.wav\t0\t3.5\tDog\nb.wav\t6.5\t8.5\tCat\nc.wav\t1\t2\tDog\nc.wav\t3\t4\tFish\n"
DURATIONS = "filename\tduration\na.wav\t10.0\nb.wav\t9.5\nc.wav\t10\n"

EVENTS = [
    {"filename": "a.wav", "onset": 1.5, "offset": 2.25, "event_label": "Dog", "score": 0.875},
    {"filename": "a.wav", "onset": 0.1 + 0.2, "offset": 0.96, "event_label": "Alarm, bell", "score": 0.5},
]


@pytest.fixture
def save(tmp_path):
    def save_text(name, text):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return save_text


@pytest.fixture
def three_tables(save):
    return save("reference.tsv", REFERENCE), save("durations.tsv", DURATIONS), save("detections.tsv", DETECTIONS)


# ── read ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_events_are_grouped_by_file_and_a_bare_filename_means_no_events(save):
    assert tables.read_events(save("r.tsv", REFERENCE)) == {
        "a.wav": [(0.0, 4.0, "Dog"), (6.0, 8.0, "Dog"), (1.0, 3.0, "Cat")],
        "b.wav": [(7.0, 9.0, "Cat")],
        "c.wav": [],
    }


def test_durations_are_read_and_may_repeat_themselves(save):
    path = save("d.tsv", DURATIONS + "a.wav\t10\n")
    assert tables.read_durations(path) == {"a.wav": 10.0, "b.wav": 9.5, "c.wav": 10.0}


def test_byte_order_mark_crlf_blank_lines_and_further_columns_change_nothing(save):
    plain = tables.read_events(save("plain.tsv", REFERENCE))
    windows = save("windows.tsv", b"\xef\xbb\xbf" + (REFERENCE + "\n").replace("\n", "\r\n").encode())
    assert tables.read_events(windows) == plain
    swapped = save("swapped.tsv", "score\tevent_label\toffset\tonset\tfilename\n0.5\tDog\t2\t1\té.wav\n")
    assert tables.read_events(swapped) == {"é.wav": [(1.0, 2.0, "Dog")]}


def test_a_table_of_nothing_but_a_header_is_empty(save):
    assert tables.read_events(save("empty.tsv", HEADER)) == {}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a.wav\t-1\t2\tDog", "onset is -1; it must be a finite number from 0 upwards"),
        ("a.wav\t1\tnan\tDog", "offset is nan; it must be"),
        ("a.wav\t1\tinf\tDog", "offset is inf; it must be"),
        ("a.wav\tone\t2\tDog", "onset is 'one', which is not a number"),
        ("a.wav\t\t2\tDog", "onset is '', which is not a number"),
        ("a.wav\t1\t2\t", "event_label is empty"),
        ("a.wav\t3\t2\tDog", "ends at 2 s, before"),
        ("a.wav\t1\t2", "the row has 3 cells, but the header has 4"),
        ("a.wav\t1\t2\tDog\tloud", "the row has 5 cells"),
        ("\t1\t2\tDog", "filename is empty"),
        ("x.wav\t\t\t", "'x.wav' is marked as having no events"),
        ('a.wav\t1\t2\t"Dog"s', "the row cannot be read"),
    ],
)
def test_a_wrong_row_is_named_by_table_and_line(save, row, problem):
    path = save("wrong.tsv", HEADER + "x.wav\t0\t1\tDog\n" + row + "\n")
    with pytest.raises(tables.TableError) as raised:
        tables.read_events(path)
    assert str(raised.value).startswith(f"{path}, line 3: ")
    assert problem in str(raised.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "lacks filename, onset, offset, event_label; it reads nothing"),
        ("filename,onset,offset,event_label\n", "tab-separated header lacks"),
        ("filename\tonset\toffset\n", "lacks event_label"),
        ("filename\tonset\toffset\tonset\tevent_label\n", "names onset more than once"),
    ],
)
def test_a_wrong_header_is_named(save, text, problem):
    with pytest.raises(tables.TableError, match=f"line 1: .*{problem}"):
        tables.read_events(save("wrong.tsv", text))


def test_text_that_is_not_utf8_is_named(save):
    with pytest.raises(tables.TableError, match="latin.tsv is not UTF-8"):
        tables.read_events(save("latin.tsv", HEADER.encode() + "é.wav\t1\t2\tDog\n".encode("latin-1")))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("a.wav\t9.9", "line 5: 'a.wav' lasts 9.9 s, but 10 s further up"),
        ("d.wav\t0", "line 5: the duration of 'd.wav' is 0 s"),
        ("d.wav\t-3", "line 5: duration is -3"),
        ("d.wav\t", "line 5: duration is ''"),
    ],
)
def test_a_wrong_duration_is_named(save, row, problem):
    with pytest.raises(tables.TableError, match=problem):
        tables.read_durations(save("wrong.tsv", DURATIONS + row + "\n"))


# ── write ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_written_table_reads_back(tmp_path):
    tables.write_events(tmp_path / "out.tsv", EVENTS)
    lines = (tmp_path / "out.tsv").read_text().splitlines()
    assert lines[0] == "filename\tonset\toffset\tevent_label\tscore"
    assert lines[2] == "a.wav\t0.3\t0.96\tAlarm, bell\t0.5"
    assert tables.read_events(tmp_path / "out.tsv") == {"a.wav": [(1.5, 2.25, "Dog"), (0.3, 0.96, "Alarm, bell")]}


def test_the_score_column_exists_only_when_there_are_scores(tmp_path):
    tables.write_events(tmp_path / "out.tsv", [{**EVENTS[0], "score": None}])
    assert (tmp_path / "out.tsv").read_text() == HEADER + "a.wav\t1.5\t2.25\tDog\n"


def test_csv_quotes_what_holds_a_comma(tmp_path):
    tables.write_events(tmp_path / "out.csv", EVENTS)
    with open(tmp_path / "out.csv", newline="") as file:
        assert [row["event_label"] for row in csv.DictReader(file)] == ["Dog", "Alarm, bell"]


@pytest.mark.parametrize("name", ["out.json", "out.jsonl", "OUT.JSON"])
def test_json_holds_one_event_per_line(tmp_path, name):
    tables.write_events(tmp_path / name, EVENTS)
    events = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
    assert events == [EVENTS[0], {**EVENTS[1], "onset": 0.3}]


def test_an_audacity_label_track_is_ordered_by_time(tmp_path):
    tables.write_events(tmp_path / "out.txt", EVENTS)
    assert (tmp_path / "out.txt").read_text() == "0.300000\t0.960000\tAlarm, bell\n1.500000\t2.250000\tDog\n"


def test_a_raven_selection_table_has_its_columns(tmp_path):
    tables.write_events(tmp_path / "out.selections.txt", EVENTS)
    with open(tmp_path / "out.selections.txt", newline="") as file:
        first, second = csv.DictReader(file, delimiter="\t")
    assert first["Selection"] == "1"
    assert first["Event Label"] == "Alarm, bell"
    assert (second["Begin Time (s)"], second["End Time (s)"]) == ("1.500000", "2.250000")
    assert float(second["Low Freq (Hz)"]) < float(second["High Freq (Hz)"])
    assert (second["Begin File"], second["Score"]) == ("a.wav", "0.875")


def test_a_named_format_goes_before_the_suffix(tmp_path):
    tables.write_events(tmp_path / "out.txt", EVENTS, format="tsv")
    assert (tmp_path / "out.txt").read_text().startswith("filename\t")
    with pytest.raises(ValueError, match="'out.xml'; name one of tsv, csv, json, audacity, raven"):
        tables.write_events(tmp_path / "out.xml", EVENTS)
    with pytest.raises(ValueError, match="name one of"):
        tables.write_events(tmp_path / "out.tsv", EVENTS, format="excel")


@pytest.mark.parametrize(
    ("events", "problem"),
    [
        ([{"filename": "a.wav", "onset": 0.0}], "lacks offset, event_label"),
        ([{**EVENTS[0], "onset": 3.0}], "0 <= onset <= offset"),
        ([{**EVENTS[0], "score": float("nan")}], "finite numbers"),
        ([EVENTS[0], {**EVENTS[1], "filename": "b.wav"}], "one recording and received events of 2"),
        ([{**EVENTS[0], "event_label": "Dog\tbig"}], "tab or line break"),
    ],
)
def test_events_that_cannot_be_written_leave_no_file(tmp_path, events, problem):
    with pytest.raises(ValueError, match=problem):
        tables.write_events(tmp_path / "out.txt", events)
    assert os.listdir(tmp_path) == []


def test_a_failed_write_keeps_the_old_file_and_leaves_no_temporary_one(tmp_path, monkeypatch):
    (tmp_path / "out.tsv").write_text("old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        tables.write_events(tmp_path / "out.tsv", EVENTS)
    assert os.listdir(tmp_path) == ["out.tsv"]
    assert (tmp_path / "out.tsv").read_text() == "old"


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere for out.tsv does not exist"):
        tables.write_events(tmp_path / "nowhere" / "out.tsv", EVENTS)


# ── score ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_table_scores_equal_the_functions_of_the_same_tables(three_tables):
    result = tables.evaluate_event_tables(*three_tables)
    truth, seconds, detections = (
        tables.read_events(three_tables[0]),
        tables.read_durations(three_tables[1]),
        tables.read_events(three_tables[2]),
    )
    assert result["intersection_f1"] == metrics.intersection_f1(truth, detections, seconds)
    assert result["collar_f1"] == metrics.collar_f1(truth, detections)
    assert result["segment_f1"] == metrics.segment_f1(truth, detections)
    assert (result["num_files"], result["num_reference_events"], result["num_detected_events"]) == (3, 4, 4)
    assert json.loads(json.dumps(result)) == result


def test_tolerances_reach_the_criteria(three_tables):
    result = tables.evaluate_event_tables(
        *three_tables,
        detection_tolerance=0.7,
        truth_tolerance=0.6,
        onset_collar_seconds=0.5,
        offset_collar_seconds=0.4,
        offset_collar_ratio=0.1,
        segment_seconds=0.25,
    )
    assert result["intersection_f1"]["settings"] == {"detection_tolerance": 0.7, "truth_tolerance": 0.6}
    assert list(result["collar_f1"]["settings"].values()) == [0.5, 0.4, 0.1]
    assert result["segment_f1"]["settings"] == {"segment_seconds": 0.25}


def test_files_with_a_duration_and_no_row_have_no_events_under_every_criterion(save, three_tables):
    shorter = save("shorter.tsv", REFERENCE.replace("c.wav\t\t\t\n", ""))
    assert tables.evaluate_event_tables(shorter, *three_tables[1:]) == tables.evaluate_event_tables(*three_tables)


@pytest.mark.parametrize("changed", ["reference", "detections"])
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("z.wav\t1\t2\tDog", "'z.wav' has no duration in "),
        ("a.wav\t2\t7\tDog", "this 'Dog' overlaps the one of line 2"),
    ],
)
def test_rows_that_cannot_be_scored_are_named_by_table_and_line(save, three_tables, changed, row, problem):
    paths = dict(zip(("reference", "durations", "detections"), three_tables, strict=True))
    text = paths[changed].read_text() + row + "\n"
    paths[changed] = save("changed.tsv", text)
    with pytest.raises(tables.TableError) as raised:
        tables.evaluate_event_tables(**paths)
    assert str(raised.value).startswith(f"{paths[changed]}, line {len(text.splitlines())}: ")
    assert problem in str(raised.value)


def test_events_beyond_the_end_are_scored_as_they_are_unless_a_limit_is_set(save, three_tables):
    reference, durations, _ = three_tables
    far = save("far.tsv", HEADER + "b.wav\t7\t13\tCat\n")
    assert tables.evaluate_event_tables(reference, durations, far)["num_detected_events"] == 1
    with pytest.raises(tables.TableError, match="line 2: .*more than 1 s after 'b.wav', which lasts 9.5 s"):
        tables.evaluate_event_tables(reference, durations, far, end_slack_seconds=1)


def test_an_event_of_no_length_is_read(save):
    assert tables.read_events(save("point.tsv", HEADER + "a.wav\t2\t2\tDog\n")) == {"a.wav": [(2.0, 2.0, "Dog")]}


def test_overlapping_detections_can_be_joined(save, three_tables):
    reference, durations, _ = three_tables
    overlapping = save("overlapping.tsv", HEADER + "a.wav\t0\t3\tDog\na.wav\t2\t4\tDog\n")
    with pytest.raises(tables.TableError, match="merge_overlaps=True"):
        tables.evaluate_event_tables(reference, durations, overlapping)
    result = tables.evaluate_event_tables(reference, durations, overlapping, merge_overlaps=True)
    assert result["num_detected_events"] == 1
    assert result["collar_f1"]["counts"]["Dog"]["tp"] == 1


def test_a_reference_without_any_event_is_refused(save, three_tables):
    with pytest.raises(tables.TableError, match="none.tsv holds no event"):
        tables.evaluate_event_tables(save("none.tsv", HEADER + "a.wav\t\t\t\n"), *three_tables[1:])


def test_scores_are_shown_as_an_aligned_table_with_its_criteria(three_tables):
    result = tables.evaluate_event_tables(*three_tables)
    text = tables.format_event_scores(result)
    # Dog: 0-3.5 covers 0-4 (found), 6-8 is missed, c.wav has a false one: F1 = 2 / (2 + 1 + 1). Cat: 6.5-8.5 covers 7-9
    # well enough, 1-3 is missed: 2 / 3. Within the collars lies only 0-3.5, whose offset may be 0.8 s off: 2 / (2 + 2).
    # Segments: Dog has 4 in common of 6 true and 5 detected, Cat 2 of 4 true and 3 detected.
    assert text.splitlines()[:8] == [
        "class              intersection  collar  segment",
        "------------------------------------------------",
        "Cat                       66.67    0.00    57.14",
        "Dog                       50.00   50.00    72.73",
        "------------------------------------------------",
        "macro                     58.33   25.00    64.94",
        "macro, all classes        58.33   25.00    64.94",
        "",
    ]
    for name in ("intersection_f1", "collar_f1", "segment_f1"):
        assert result[name]["criterion"] in text
    assert "3 files, 4 reference events, 4 detected events" in text
    assert "not scored: Fish (1)" in text


def test_classes_outside_the_macro_row_are_marked(save, three_tables):
    reference, durations, _ = three_tables
    text = tables.format_event_scores(
        tables.evaluate_event_tables(reference, durations, save("one.tsv", HEADER + "a.wav\t0\t4\tDog\n"))
    )
    assert "\nCat                        0.00*   0.00     0.00*\n" in text
    assert "* not part of the macro row." in text
    assert all(line == line.rstrip() for line in text.splitlines())


def test_a_sentence_shows_what_a_table_says_in_one_readable_line(tmp_path):
    path = tmp_path / "odd.tsv"
    path.write_text("filename\tdu\x01ration\x1b[2J" + "9" * 5000 + "\n", encoding="utf-8")
    with pytest.raises(tables.TableError) as caught:
        tables.read_durations(path)
    assert str(caught.value).startswith(f"{path}, line 1: ") and r"du\x01ration\x1b[2J999" in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600 + len(str(path))
