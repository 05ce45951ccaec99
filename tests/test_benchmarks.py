"""What `make bench` promises: fair turns, ratios of medians, whole tables, and that a slower model is seen."""

import sys
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # benchmarks are no part of the package, and found where they lie

import modeling_htsat
from benchmarks.speed import clock, contestants, gpu, processes, processor, recordings, report
from benchmarks.speed.__main__ import PROCESSOR, main
from benchmarks.speed.clock import Pace, Row, interleave, make_rows, per_clip
from benchmarks.speed.contestants import AST, CLAP, FLOOR, TORCHLIBROSA, Scale
from benchmarks.speed.report import Record, changes, comparison_of, goal_of, markdown_of, table_of


class FakeClock:
    """A clock that calls move on by what they are said to take."""

    def __init__(self, monkeypatch):
        self.now, self.calls = 0.0, []
        monkeypatch.setattr(clock.time, "perf_counter", lambda: self.now)

    def run(self, name: str, *durations: float):
        left = iter(durations)

        def call():
            self.calls.append(name)
            self.now += next(left)

        return call


def test_contestants_take_turns_and_nobody_always_follows_the_same_one(monkeypatch):
    time = FakeClock(monkeypatch)
    names = ["ours", "floor", "theirs"]
    interleave({name: time.run(name, *[1.0] * 31) for name in names}, Pace(0, fewest_rounds=30))
    rounds = [time.calls[start : start + 3] for start in range(0, len(time.calls), 3)]
    assert rounds[0] == names  # the first one is not counted
    assert len(rounds) == 31 and all(sorted(turns) == sorted(names) for turns in rounds)
    counted = time.calls[3:]
    followed = Counter(zip(counted, counted[1:], strict=False))
    assert all(followed[one, other] >= 8 for one in names for other in names if one != other)  # of some 30


def test_what_counts_are_ratios_of_medians_without_the_first_call(monkeypatch):
    time = FakeClock(monkeypatch)
    runs = {"ours": time.run("ours", 50, 2, 3, 40), "theirs": time.run("theirs", 1, 90, 6, 5)}
    samples = interleave(runs, Pace(0, fewest_rounds=3))
    assert samples == {"ours": [2, 3, 40], "theirs": [90, 6, 5]}
    ours, theirs = make_rows("encoder", "batch 2", per_clip(samples, 2))
    assert (ours.value, theirs.value) == (1500, 3000)
    assert (ours.ratio, theirs.ratio) == (1, 2)  # of means it would be 2.2


def test_a_case_ends_when_its_budget_is_spent_but_not_before_its_fewest_rounds():
    pace = Pace(10, fewest_rounds=3, most_rounds=40)
    assert [pace.rounds(seconds) for seconds in (100, 2, 0.001)] == [3, 5, 40]


def test_who_could_not_take_part_keeps_a_row_that_says_why():
    rows = make_rows("front end", "batch 1", {"ours": [1.0], "absent": []}, notes={"absent": "not installed"})
    assert "| batch 1 | absent | – |  |  |  |  | not installed |" in table_of(rows)


def test_a_floor_is_the_models_arithmetic_at_the_rate_of_a_library(monkeypatch):
    monkeypatch.setattr(processor, "floor_products", lambda size: {"torch.mm": None, "oneDNN": None})
    samples = {"ours": [5.0], "torch.mm": [4.0, 3.0, 9.0], "oneDNN": [2.0, 1.0, 8.0]}
    flops = 3 * contestants.floor_flops(64)
    floored, notes = processor.put_floors(samples, flops, size=64)
    assert floored == {"ours": [5.0], "floor, torch.mm": [12.0, 9.0, 27.0], "floor, oneDNN": [6.0, 3.0, 24.0]}
    assert notes["floor, oneDNN"] == f"{flops / 1e9:.1f} GFLOP at {flops / 6e9:.0f} GFLOP/s"


def test_the_floor_counts_every_product_of_the_encoder_and_grows_with_the_batch():
    encoder = contestants.make_encoder(Scale.quick().config)
    one, three = (contestants.count_flops(encoder, torch.randn(batch, 1001, 64)) for batch in (1, 3))
    assert three == 3 * one
    tokens, dim = 64 * 64, 8
    patches_to_tokens = 2 * tokens * 16 * dim
    projections = 2 * tokens * dim * (4 * dim)  # query, key, value and output
    attention = 2 * 2 * tokens * 64 * dim
    mlp = 2 * 2 * tokens * dim * int(4 * dim)
    merge = 2 * (tokens // 4) * (4 * dim) * (2 * dim)
    wide = 2 * ((2 * (tokens // 4) * (2 * dim)) * (4 * 2 * dim + 2 * 64 + 8 * 2 * dim))
    assert one == patches_to_tokens + projections + attention + mlp + merge + wide


# ── the difference to the last table ──────────────────────────────────────────────────────────────────────────────────

LAST = [
    Row("encoder", "batch 4", "ours", 100.0, "ms a clip", 1.0),
    Row("encoder", "batch 4", CLAP, 180.0, "ms a clip", 1.8),
    Row("encoder", "batch 4", FLOOR, 80.0, "ms a clip", 0.8),
    Row("training memory", "batch 4", "ours", 1000.0, "MB", 1.0),
]


def record(rows: list[Row], **values) -> Record:
    return Record(**{"rows": rows, "date": "2026-01-02", "hardware": "a machine", "versions": {"torch": "2"}, **values})


def with_values(*values: float) -> list[Row]:
    return [replace(row, value=value) for row, value in zip(LAST, values, strict=True)]


def factors(rows: list[Row]) -> list[float]:
    return [round(change.factor, 3) for change in changes(rows, LAST)]


def test_a_model_that_became_slower_is_seen():
    slower = with_values(112, 180, 80, 1000)
    assert factors(slower) == [1.12, 1.0]
    text = comparison_of(record(slower), record(LAST))
    assert "+12%  encoder, batch 4, ours  WORSE" in text and "1 of 2 worse and 0 better" in text


def test_a_machine_that_became_slower_is_not_taken_for_the_model():
    assert factors(with_values(150, 270, 120, 1000)) == [1.0, 1.0]


def test_a_slower_model_is_seen_on_a_faster_machine():
    assert factors(with_values(100, 90, 40, 1000)) == [2.0, 1.0]


def test_memory_that_grew_is_seen():
    assert "+30%  training memory, batch 4, ours  WORSE" in comparison_of(
        record(with_values(100, 180, 80, 1300)), record(LAST)
    )


def test_what_is_within_the_noise_raises_no_alarm():
    assert "0 of 2 worse and 0 better" in comparison_of(record(with_values(104, 180, 80, 980)), record(LAST))


def test_another_machine_and_other_libraries_are_named():
    text = comparison_of(record(LAST, hardware="another", versions={"torch": "3"}), record(LAST))
    assert "The machine differs: another; it was a machine." in text
    assert "torch differs: 3; it was 2." in text


def test_without_a_last_table_there_is_nothing_to_compare_with(tmp_path):
    assert Record.load(tmp_path / "speed.json") is None
    assert comparison_of(record(LAST), None) == "There is no last table to compare with."


def test_a_record_survives_its_file(tmp_path):
    record(LAST).save(tmp_path / "speed.json")
    assert Record.load(tmp_path / "speed.json") == record(LAST)
    assert [path.name for path in tmp_path.iterdir()] == ["speed.json"]


@pytest.mark.parametrize(("ratio", "verdict"), [(1.79, "**missed**"), (1.8, "reached")])
def test_a_goal_says_whether_it_is_reached(ratio, verdict):
    row = Row("encoder", "batch 4, 2 threads", CLAP, 1.0, "ms a clip", ratio)
    assert goal_of(row) == f"at least 1.8: {verdict}"
    assert goal_of(replace(row, case="batch 1, 2 threads")) == ""


def test_every_goal_is_about_a_row_that_a_whole_run_has():
    threads = ["1 thread", "2 threads"]
    timed = {f"batch {batch}, {count}" for batch in Scale.full().batches for count in threads}
    heard = {f"{name}, {count}" for name in Scale.full().recordings for count in threads}
    known = timed | heard | {f"batch {batch}" for batch in Scale.full().memory_batches}
    assert {case for _, case, _ in report.GOALS} <= known
    sections = {"front end", "encoder", "encoder beside AST", "training step", "training memory", "long recordings"}
    assert {section for section, _, _ in report.GOALS} == sections


# ── a smoke run ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def in_this_process(monkeypatch):
    """Tasks that have a process each run here: seven imports of transformers would take half a minute."""

    def call(task: str, threads: int, **arguments) -> dict[str, float]:
        return processes.TASKS[task](**arguments)

    monkeypatch.setattr(processor, "call", call)
    monkeypatch.setattr(recordings, "call", call)


def test_a_smoke_run_writes_tables_with_all_rows_and_then_compares(tmp_path, in_this_process, capsys):
    main(["--quick", "--device", "cpu", "--output", str(tmp_path)])
    found = Record.load(tmp_path / "speed.json")
    cases = ["batch 1, 1 thread", "batch 2, 1 thread"]
    floors = [f"{FLOOR}, {library}" for library in contestants.floor_products(64)]
    timed = {
        "front end": ["ours", TORCHLIBROSA, "ClapFeatureExtractor"],
        "encoder": ["ours", CLAP, *floors],
        "end to end": ["ours", CLAP],
        "training step": [*processor.TRAINEES, *floors],
    }
    expected = [(section, case, name) for section, names in timed.items() for case in cases for name in names]
    for section in ("encoder beside AST", "end to end beside AST"):  # more clips would take AST too long
        expected += [(section, cases[0], name) for name in ("ours", AST)]
    expected += [("training memory", "batch 1", name) for name in processor.TRAINEES]
    for case in ("10 s, 1 thread", "20 s, 1 thread"):
        expected += [("long recordings", case, name) for name in ("ours", recordings.TEN_SECONDS)]
        expected.append(("long recordings, memory", case, "ours"))
    assert [row.key for row in found.rows] == expected
    assert found.versions["torch"] == version("torch") and found.hardware and found.date
    assert found.versions["modeling-htsat"] == modeling_htsat.__version__  # also where it is not installed

    for row in found.rows:
        assert row.value is None or row.value >= 0, row
        assert row.value is not None or row.note, row
        assert row.difference is None or row.difference < (1e-4 if row.section == "front end" else 1e-5), row
    alike = {row.key[:2] for row in found.rows if row.contestant == CLAP and row.difference is not None}
    assert alike == {(section, case) for section in timed for case in cases if section != "front end"}
    text = (tmp_path / "speed.md").read_text(encoding="utf-8")
    assert text == markdown_of(found, "python -m benchmarks.speed")
    assert text.count("\n| batch") + text.count(" s, 1 thread |") == len(expected)
    assert text.count("\n## ") == len({section for section, _, _ in expected})

    main(["--quick", "--device", "cpu", "--output", str(tmp_path), "--sections", "encoder"])
    assert "Since 20" in capsys.readouterr().out
    assert Record.load(tmp_path / "speed.json") == found  # only a whole run is written


def test_a_smoke_run_cannot_overwrite_what_was_measured(capsys):
    with pytest.raises(SystemExit):
        main(["--quick"])
    assert "name another place" in capsys.readouterr().err


def test_an_unknown_section_is_refused_before_anything_is_measured(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--quick", "--device", "cpu", "--output", str(tmp_path), "--sections", "decoder"])
    assert "'decoder'" in capsys.readouterr().err and set(PROCESSOR) >= {"encoder", "recordings"}


# Processes of their own, which import four libraries each; by default, their tasks run in the smoke run above.


@pytest.mark.slow
def test_a_process_of_its_own_reports_its_own_peak_of_memory():
    ballast = torch.ones(300_000_000)  # 1.2 GB here, which a child's `ru_maxrss` would start from
    answer = processes.call("hear", seconds=20, threads=1, is_quick=True)
    assert 100e6 < answer["peak_bytes"] < 4 * ballast.numel()
    assert len(answer["taken"]) == 1 and len(answer["ten_seconds"]) == 10


@pytest.mark.slow
def test_a_task_that_fails_in_its_process_says_why():
    with pytest.raises(RuntimeError, match="KeyError: 'sing'"):
        processes.call("sing", threads=1)


@pytest.mark.parametrize("section", [gpu.gpu_front_end, gpu.gpu_encoder, gpu.gpu_training])
def test_what_is_measured_on_a_gpu_runs_on_a_processor_too(section):
    rows = list(section(Scale.quick(), device="cpu"))
    assert {row.case for row in rows} == {"batch 1", "batch 2"}
    assert len({row.section for row in rows}) == 2  # time, and memory
    timed = [row for row in rows if "memory" not in row.section and row.value]
    assert all(row.ratio and "clips a second" in row.note for row in timed)


def test_batches_grow_until_nobody_fits_and_who_does_not_says_so():
    def make_runs(batch: int):
        def small():
            if batch > 1:
                raise torch.OutOfMemoryError

        return {"ours": lambda: None, "small": small} if batch < 3 else {"small": small}

    scale = replace(Scale.quick(), gpu_batches=(1, 2, 3, 4))
    rows = list(gpu.up_to_what_fits("GPU", make_runs, scale, "cpu", reference="ours"))
    assert {row.case for row in rows} == {"batch 1", "batch 2"}
    notes = {(row.case, row.contestant): row.note for row in rows if row.section == "GPU"}
    assert notes["batch 2", "small"] == "does not fit" and "clips a second" in notes["batch 1", "small"]
