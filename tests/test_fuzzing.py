"""Thousands of damaged files of every kind: each is answered rightly, or refused in one sentence that names it.

The short version runs by default, the long one with `-m slow`. What a failure prints runs its case again.
"""

import os
import re
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
    "wav": 40,
    "flac": 30,
    "ogg": 30,
    "mp3": 30,
    "tables": 100,
    "csv": 40,
    "corpora": 80,
    "safetensors": 25,
    "checkpoints": 50,
    "weights": 12,
    "model_folders": 12,
    "recipes": 40,
}
SLOW_SEEDS = (1, 2)
MANY = {"model_folders": 600} | dict.fromkeys(("safetensors", "weights"), 1000)
MANY |= dict.fromkeys(("wav", "flac", "ogg", "mp3", "csv"), 1500)
# What people have, and by which valid files it is seen that a case was one of it.
FORMATS = {
    "wav": r"WAV_\w+\.sound",
    "flac": r"FLAC_\w+\.sound",
    "ogg": r"OGG_\w+\.sound",
    "mp3": r"MP3_\w+\.sound",
    "csv": r"\w+\.csv",
    "safetensors": r"\w+\.safetensors",
    "checkpoints": r"\w+\.ckpt",
}
FEWEST, FEWEST_SLOW = 25, 2000 // len(SLOW_SEEDS)  # cases of each format, of the latter for each seed
MOST_GROWTH = 32 * 2**20  # bytes, after the first fifth of the cases
MOST_LEAK = 12 * 2**10  # bytes a case; at most 7 kB were seen, in what transformers remembers of models


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A process of its own, which a damaged file may end without ending the tests."""
    running = CaseProcess(tmp_path_factory.mktemp("fuzzing") / "log.txt")
    yield running
    running.close()


def assert_all_is_well(campaign, num_cases, fewest):
    assert not campaign.findings, campaign.report()
    if campaign.kind in FORMATS:
        own = [count for name, count in campaign.files.items() if re.fullmatch(FORMATS[campaign.kind], name)]
        assert sum(own) >= fewest, f"{sum(own)} cases of {campaign.kind}"
    assert campaign.outcomes["answered"] + campaign.outcomes["refused"] == num_cases
    assert campaign.outcomes["refused"] > num_cases / 4, "damage that hardly ever matters is none"
    assert campaign.growth() < MOST_GROWTH
    if num_cases >= 25:  # of fewer, one that loads something is more than a tenth of half of them
        assert campaign.leak() < MOST_LEAK


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_are_answered_rightly_or_refused_by_name(kind, process):
    num_cases = FEW.get(kind, 60)
    assert_all_is_well(process.run(kind, 0, num_cases), num_cases, FEWEST)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW_SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_thousands_of_damaged_files_are_answered_rightly_or_refused_by_name(kind, seed, process):
    num_cases = MANY.get(kind, 3000)
    campaign = process.run(kind, seed, num_cases)
    assert_all_is_well(campaign, num_cases, FEWEST_SLOW)
    assert campaign.outcomes["answered"], "damage that always matters shows no answer"


def test_every_format_that_people_have_is_met_often_enough():
    """Without running any: `assert_all_is_well` sees that a kind's cases are of its format."""
    for kind in FORMATS:
        assert kind in KINDS and FEW.get(kind, 60) >= FEWEST and MANY.get(kind, 3000) >= FEWEST_SLOW, kind
    assert FEWEST_SLOW * len(SLOW_SEEDS) >= 2000


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
