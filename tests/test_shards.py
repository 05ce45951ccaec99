"""Rows from parquet, from anywhere: each group read once where the order allows it, few in memory, or one sentence."""

import multiprocessing
import pickle

import fsspec
import pyarrow
import pyarrow.parquet
import pytest

from modeling_htsat.training import shards
from modeling_htsat.training.clips import CLIP_FEATURES
from modeling_htsat.training.sampling import EpochBatches
from modeling_htsat.training.shards import ShardError, ShardRows


def make_rows(first, count):
    return [
        {
            "video_id": f"clip {index}",
            "audio": {"bytes": bytes([index]) * 50, "path": f"{index}.flac"},
            "labels": ["/m/09x0r", f"/m/{index % 3}"],
            "human_labels": ["Speech", f"class {index % 3}"],
            "events": [{"onset": 0.5, "offset": float(index), "event_label": "Speech"}] * (index % 2),
        }
        for index in range(first, first + count)
    ]


SIZES = (11, 7, 5)
ROWS = make_rows(0, sum(SIZES))


def write(path, rows, schema=CLIP_FEATURES.arrow_schema, row_group_size=4):
    with fsspec.open(str(path), "wb") as file:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), file, row_group_size=row_group_size)
    return str(path)


def write_shards(folder):
    begins = [sum(SIZES[:number]) for number in range(len(SIZES))]
    return [
        write(f"{folder}/{begin}.parquet", ROWS[begin : begin + size])
        for begin, size in zip(begins, SIZES, strict=True)
    ]


@pytest.fixture
def files(tmp_path):
    return write_shards(tmp_path)


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(shards, "RETRY_PAUSES_SECONDS", (0.0, 0.0))


def without_audio(rows):
    return [{name: value for name, value in row.items() if name != "audio"} for row in rows]


# ── what is read ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_row_of_every_file_is_there_in_order(files):
    rows = ShardRows(files)
    assert len(rows) == 23
    assert [rows[index] for index in range(23)] == ROWS
    assert rows[-1] == ROWS[-1]
    for index in (23, -24):
        with pytest.raises(IndexError, match="there are 23"):
            rows[index]


def test_the_groups_are_those_of_the_files(files):
    assert list(ShardRows(files).group_sizes) == [4, 4, 3, 4, 3, 4, 1]


def test_without_audio_every_other_column_is_read_and_no_group(files):
    rows = ShardRows(files)
    assert rows.without_audio() == without_audio(ROWS)
    assert rows.groups_read == 0


@pytest.mark.parametrize("place", ["memory://{}", "file://{}", "simplecache::memory://{}"])
def test_files_may_lie_wherever_fsspec_reaches(place, tmp_path):
    source = "file" if place.startswith("file") else "memory"
    files = write_shards(f"{source}://{tmp_path}")
    rows = ShardRows([place.format(file.split("://")[1]) for file in files])
    assert [rows[index] for index in range(23)] == ROWS
    assert rows.without_audio() == without_audio(ROWS)


def test_further_columns_are_left_out_and_missing_ones_are_not_known(tmp_path):
    schema = CLIP_FEATURES.arrow_schema
    for name in ("events", "human_labels"):
        schema = schema.remove(schema.get_field_index(name))
    rows = [{**row, "quality": 3} for row in ROWS]
    read = ShardRows([write(tmp_path / "a.parquet", rows, schema.append(pyarrow.field("quality", pyarrow.int32())))])
    expected = [{**row, "events": None, "human_labels": None} for row in ROWS]
    assert [read[index] for index in range(23)] == expected
    assert read.without_audio() == without_audio(expected)


def test_clips_without_names_get_one_each(tmp_path):
    schema = pyarrow.schema([CLIP_FEATURES.arrow_schema.field("audio")])
    rows = ShardRows([write(tmp_path / f"{name}.parquet", ROWS[:7], schema) for name in "ab"])
    names = [f"{name}-{number}" for name in "ab" for number in range(7)]
    assert [rows[index]["video_id"] for index in range(14)] == names
    assert [row["video_id"] for row in rows.without_audio()] == names


def test_files_and_groups_without_rows_do_not_disturb(tmp_path):
    files = [write(tmp_path / "a.parquet", []), write(tmp_path / "b.parquet", ROWS[:5])]
    rows = ShardRows(files)
    assert (len(rows), list(rows.group_sizes), rows[4]) == (5, [4, 1], ROWS[4])
    assert len(ShardRows(files[:1])) == 0


# ── how often ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_order_within_a_few_groups_reads_each_group_once(files):
    rows = ShardRows(files, cached_groups=2)
    batches = EpochBatches(23, 4, seed=3, group_sizes=rows.group_sizes, groups_at_once=2)
    for epoch in range(3):
        batches.set_epoch(epoch)
        order = [index for batch in batches for index, _ in batch]
        assert sorted(order) == list(range(23)) and order != sorted(order)
        for index in order:
            assert rows[index] == ROWS[index]
    # The two groups that are still held when an epoch ends may serve the next one as well.
    assert 7 + 5 + 5 <= rows.groups_read <= 3 * 7


def test_an_order_that_jumps_reads_a_group_every_time(files):
    rows = ShardRows(files, cached_groups=1)
    for index in (0, 4) * 5:
        assert rows[index] == ROWS[index]
    assert rows.groups_read == 10


def test_no_more_groups_and_files_are_held_than_asked_for(files):
    rows = ShardRows(files, cached_groups=2)
    for index in range(23):
        rows[index]
        assert len(rows._cache) <= 2 and len(rows._open) <= 2


# ── several processes ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_copy_for_another_process_takes_neither_open_files_nor_what_was_read(files):
    rows = ShardRows(files)
    fresh = len(pickle.dumps(rows))
    rows[0], rows[22]
    copied = pickle.dumps(rows)
    assert len(copied) == fresh and ROWS[0]["audio"]["bytes"] not in copied
    copy = pickle.loads(copied)
    assert (copy.groups_read, copy[22], list(copy.group_sizes)) == (0, ROWS[22], list(rows.group_sizes))


def read_in_fork(rows, queue):
    queue.put((rows[1], rows.groups_read))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_opens_its_own_files(files):
    rows = ShardRows(files)
    assert rows[0] == ROWS[0]
    fork = multiprocessing.get_context("fork")
    queue = fork.SimpleQueue()
    process = fork.Process(target=read_in_fork, args=(rows, queue))
    process.start()
    assert queue.get() == (ROWS[1], 1)
    process.join()
    assert rows[1] == ROWS[1] and rows.groups_read == 1


# ── what goes wrong ───────────────────────────────────────────────────────────────────────────────────────────────────


def fail_first(monkeypatch, times, error):
    """The next `times` files that are opened cannot be."""
    failures, really_open = [error] * times, shards._open_binary

    def open_binary(file):
        if failures:
            raise failures.pop()
        return really_open(file)

    monkeypatch.setattr(shards, "_open_binary", open_binary)
    return failures


def test_a_network_that_fails_is_tried_again(files, impatient, monkeypatch):
    rows = ShardRows(files)
    failures = fail_first(monkeypatch, 2, ConnectionResetError("gone"))
    assert rows[5] == ROWS[5] and not failures


def test_pauses_between_attempts_grow_and_the_last_error_is_one_sentence(files, monkeypatch):
    pauses = []
    monkeypatch.setattr(shards.time, "sleep", pauses.append)
    rows = ShardRows(files)
    fail_first(monkeypatch, 100, TimeoutError("no answer\nfrom there"))
    with pytest.raises(ShardError, match=r"^The shard .*11\.parquet could not be read after 4 attempts \(no answer\);"):
        rows[12]
    assert len(pauses) == 3 and pauses == sorted(set(pauses)) and pauses[0] > 0


def test_a_file_that_breaks_while_it_is_open_is_opened_anew(files, impatient):
    rows = ShardRows(files)
    rows[0]
    rows._open[files[0]]._handle.close()
    assert rows[8] == ROWS[8]


@pytest.mark.parametrize("place", ["{}", "memory://{}"])
def test_what_no_patience_can_mend_is_refused_at_once(place, tmp_path, monkeypatch):
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: pytest.fail("there is nothing to wait for"))
    with pytest.raises(ShardError, match=r"absent\.parquet does not exist; check"):
        ShardRows([place.format(tmp_path / "absent.parquet")])
    with fsspec.open(place.format(tmp_path / "text.parquet"), "wb") as file:
        file.write(b"no parquet at all")
    with pytest.raises(ShardError, match=r"text\.parquet is not a parquet file"):
        ShardRows([place.format(tmp_path / "text.parquet")])


def test_a_file_cut_short_is_refused_by_name(files):
    with open(files[1], "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ShardError, match=rf"{files[1]} is not a parquet file, or a damaged one"):
        ShardRows(files)


def test_parquet_of_something_else_is_refused_by_what_it_lacks(tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"image": [b"x"]}), tmp_path / "a.parquet")
    with pytest.raises(ShardError, match=r"a\.parquet lacks the column audio; it has image\."):
        ShardRows([tmp_path / "a.parquet"])
    pyarrow.parquet.write_table(pyarrow.table({"audio": [0.5]}), tmp_path / "b.parquet")
    with pytest.raises(ShardError, match=r"b\.parquet has a column audio of the type double; encoded sounds"):
        ShardRows([tmp_path / "b.parquet"])


def test_an_address_of_an_unknown_kind_is_one_sentence():
    with pytest.raises(ShardError, match=r"^gopher://a\.parquet is out of reach \(Protocol not known"):
        ShardRows(["gopher://a.parquet"])


def test_orders_that_make_no_sense_are_refused(files):
    with pytest.raises(ValueError, match="No parquet file"):
        ShardRows([])
    with pytest.raises(ValueError, match="cached_groups is 0"):
        ShardRows(files, cached_groups=0)


def test_a_damaged_file_that_lies_here_is_refused_without_waiting(tmp_path, monkeypatch):
    """What is wrong with it will be wrong in twenty seconds too."""
    monkeypatch.setattr(shards.time, "sleep", lambda seconds: pytest.fail("waits for a damaged file"))
    path = write(tmp_path / "a.parquet", ROWS[:9])
    with open(path, "rb") as file:
        content = file.read()
    for number in range(300):
        start = number * len(content) // 300
        with open(path, "wb") as file:
            file.write(content[:start] + b"\xff" * 8 + content[start + 8 :])
        try:
            rows = ShardRows([path])
            assert len([rows[index] for index in range(len(rows))]) == len(rows.without_audio())
        except ShardError as error:
            assert "a.parquet" in str(error)
