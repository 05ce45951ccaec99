"""Thousands of damaged files of every kind: each is answered rightly, or refused in one sentence that names it.

The short version runs by default, the long one with `-m slow`. What a failure prints runs its case again.
"""

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from fuzz_kinds import KINDS
from fuzzing import CaseProcess, judged, run_case

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the signals and the limits of Unix")

# By default; where a case takes a tenth of a second, fewer.
FEW = {
    "sounds": 100,
    "tables": 100,
    "corpora": 80,
    "checkpoints": 50,
    "weights": 12,
    "model_folders": 12,
    "recipes": 40,
}
MANY = {"model_folders": 600, "weights": 1000}
MOST_GROWTH = 32 * 2**20  # bytes, after the first fifth of the cases


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A process of its own, which a damaged file may end without ending the tests."""
    running = CaseProcess(tmp_path_factory.mktemp("fuzzing") / "log.txt")
    yield running
    running.close()


def assert_all_is_well(campaign, num_cases):
    assert not campaign.findings, campaign.report()
    assert campaign.outcomes["answered"] + campaign.outcomes["refused"] == num_cases
    assert campaign.outcomes["refused"] > num_cases / 4, "damage that hardly ever matters is none"
    assert campaign.growth() < MOST_GROWTH


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_answered_rightly_or_refused_by_name(kind, process):
    num_cases = FEW.get(kind, 60)
    assert_all_is_well(process.run(kind, 0, num_cases), num_cases)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_files_are_answered_rightly_or_refused_by_name(kind, seed, process):
    num_cases = MANY.get(kind, 3000)
    campaign = process.run(kind, seed, num_cases)
    assert_all_is_well(campaign, num_cases)
    assert campaign.outcomes["answered"], "damage that always matters shows no answer"


# ── that the above can fail ───────────────────────────────────────────────────────────────────────────────────────────


class RefusalError(ValueError):
    """An error of ours."""


@pytest.fixture
def outcome(tmp_path, monkeypatch):
    """`outcome(read)`: what becomes of a file that is read so."""
    (tmp_path / "kind").mkdir()
    path = tmp_path / "kind" / "some.file"
    path.write_bytes(b"content")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fuzzing.CASE_SECONDS", 0.3)
    monkeypatch.setattr("fuzzing.WAITING_SECONDS", 0.5)

    def run(read):
        seed = SimpleNamespace(
            path=path, read=lambda path, rng: read(path), mutate=lambda rng, content, others: content[:3]
        )
        kinds = SimpleNamespace(
            KINDS={"kind": SimpleNamespace(refusals=(RefusalError,), is_ours=True)}, CANARY="canary"
        )
        answer = run_case(kinds, "kind", [(seed, b"content")], 0, 0)
        assert path.read_bytes() == b"content"  # the next case begins with a file that is whole
        return answer["outcome"], answer.get("what", "")

    return run


def refuse(sentence):
    def read(path):
        raise RefusalError(sentence.format(path))

    return read


def test_a_right_answer_and_a_sentence_that_names_the_file_are_well(outcome):
    assert outcome(lambda path: path.read_bytes() == b"con" or 1 / 0) == ("answered", "")
    assert outcome(refuse("{} is cut."))[0] == "refused"


@pytest.mark.parametrize(
    ("read", "finding"),
    [
        (lambda path: {}["key"], "raised KeyError: 'key'"),
        (lambda path: b"\xff".decode(), "raised UnicodeDecodeError"),
        (lambda path: time.sleep(99), "raised CaseTimeoutError: no answer within"),
        (lambda path: [None for number in iter(int, 1) if number], "raised CaseTimeoutError: no answer within"),
        (lambda path: (path.parents[1] / "canary").touch(), "ran what a pickle told it to"),
        (refuse("it is cut."), "the file is not named"),
        (refuse("{}\nis cut."), "more than one line"),
        (refuse("{} is \x1b[2Jcut."), "letters that nobody can read"),
        (refuse("{} is " + "9" * 2000), "a sentence of"),
    ],
)
def test_anything_else_is_a_finding(read, finding, outcome):
    kind, what = outcome(read)
    assert kind == "finding" and finding in what


def test_errors_of_libraries_are_not_ours_though_they_are_value_errors(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnicodeDecodeError) as caught:
        b"\xff".decode()
    assert judged(caught.value, tmp_path / "kind" / "a.txt", is_ours=False)["outcome"] == "finding"


def test_a_case_that_ends_the_process_is_a_finding_and_the_next_one_runs(process, monkeypatch):
    """The process is ended after it said that it is ready, which is when a case would."""
    answer = process._answer

    def answer_and_end(seconds):
        monkeypatch.setattr(process, "_answer", answer)
        is_ready = answer(seconds)
        os.kill(process.process.pid, signal.SIGKILL)
        return is_ready

    monkeypatch.setattr(process, "_answer", answer_and_end)
    campaign = process.run("checkpoints", 0, 40)
    (finding,) = campaign.findings
    assert finding["what"] == f"ended the process with status {-signal.SIGKILL}"
    assert campaign.outcomes.total() == 40
