"""Runs damaged files through the project in a process of its own, and finds out what the answers were worth.

A case is a kind, a seed and a number, and always the same: `python tests/fuzzing.py sounds --seed 0 --case 17` runs one
again and shows its traceback. A case is right if it ends with a right answer, or with an error of ours whose one
sentence names the file; not if it raises anything else, takes longer than a moment or more than its memory, or ends
the process.
"""

import argparse
import ctypes
import faulthandler
import gc
import json
import os
import queue
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[1]
CASE_SECONDS = 20  # of computing, so that a machine with other work finds no hangs that are none
WAITING_SECONDS = 120  # of the clock, for what waits instead of computing
LOST_SECONDS = 300  # for what no signal interrupts
START_SECONDS = 900  # to import and to make the valid files, on a machine that is busy
SPARE_BYTES = 2**30  # what one case may allocate beyond what the process has
SMALL_OBJECT_BYTES = 64  # a guess: those of up to 512 bytes come from arenas that malloc knows nothing of
LONGEST_SENTENCE = 1500


class CaseTimeoutError(BaseException):
    """Not an `Exception`, which some code might take for an answer."""


# ── in the process of the cases ───────────────────────────────────────────────────────────────────────────────────────


def serve() -> None:
    """Read `{"kind", "seed", "cases"}` from stdin, write a line for each case to what was stdout."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    faulthandler.enable()
    import fuzz_kinds

    with tempfile.TemporaryDirectory() as temporary:
        seeds = {}
        for line in sys.stdin:
            asked = json.loads(line)
            if asked["kind"] not in seeds:
                seeds[asked["kind"]] = make_seeds(fuzz_kinds, asked["kind"], Path(temporary))
                limit_memory()
                gc.collect()
                gc.freeze()  # so that to collect after each case takes a moment
            print(json.dumps("ready"), file=answers, flush=True)
            for number in range(*asked["cases"]):
                answer = run_case(fuzz_kinds, asked["kind"], seeds[asked["kind"]], asked["seed"], number)
                memory = {"resident": resident_bytes(), "held": held_bytes()}
                print(json.dumps({**answer, "case": number, **memory}), file=answers, flush=True)


def make_seeds(fuzz_kinds: Any, kind: str, temporary: Path) -> list[tuple[Any, bytes]]:
    folder = temporary / kind
    folder.mkdir()
    os.chdir(temporary)
    return [(seed, seed.path.read_bytes()) for seed in fuzz_kinds.KINDS[kind].make(folder)]


def limit_memory() -> None:
    if sys.platform == "linux":
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + SPARE_BYTES, resource.RLIM_INFINITY))


def resident_bytes() -> int:
    if sys.platform == "linux":
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


MALLOC_FIGURES = ("arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "top")


class MallocFigures(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = [(name, ctypes.c_size_t) for name in MALLOC_FIGURES]


def held_bytes() -> int:
    """What is allocated and not given back: by malloc to the byte, and the small objects of Python by their number."""
    gc.collect()
    small = sys.getallocatedblocks() * SMALL_OBJECT_BYTES
    try:
        count = ctypes.CDLL(None).mallinfo2
    except AttributeError:  # the library of C is another, or an older one
        return small
    count.restype = MallocFigures
    figures = count()
    return figures.uordblks + figures.hblkhd + small


def run_case(
    fuzz_kinds: Any, kind_name: str, seeds: list[tuple[Any, bytes]], campaign: int, number: int
) -> dict[str, Any]:
    kind = fuzz_kinds.KINDS[kind_name]
    rng = Random(f"{kind_name} {campaign} {number}")
    seed, content = rng.choice(seeds)
    for number_of_signal in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number_of_signal, _raise_timeout)
    seed.path.write_bytes(seed.mutate(rng, content, [other for _, other in seeds]))
    signal.setitimer(signal.ITIMER_PROF, CASE_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, WAITING_SECONDS)
    begin = time.process_time()
    try:
        seed.read(seed.path, rng)
        answer = {"outcome": "answered"}
    except kind.refusals as error:
        answer = judged(error, seed.path, kind.is_ours)
    except (Exception, CaseTimeoutError) as error:
        answer = found(f"raised {type(error).__name__}: {str(error)[:300]}", error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        seed.path.write_bytes(content)
    canary = seed.path.parent.parent / fuzz_kinds.CANARY
    if canary.exists():
        canary.unlink()
        answer = {"outcome": "finding", "what": "ran what a pickle told it to", "trace": ""}
    return {**answer, "file": seed.path.name, "seconds": time.process_time() - begin}


def _raise_timeout(*_: object) -> None:
    raise CaseTimeoutError(f"no answer within {CASE_SECONDS} s of computing, or {WAITING_SECONDS} s")


def judged(error: Exception, path: Path, is_ours: bool) -> dict[str, Any]:
    """An error that is of the right kind is a right answer if its one sentence says where."""
    sentence = str(error)
    if isinstance(error, UnicodeError) or type(error).__module__ in ("json.decoder",):
        return found(f"raised {type(error).__name__}: {sentence[:300]}", error)
    if is_ours and len(sentence) > LONGEST_SENTENCE:
        return found(f"a sentence of {len(sentence)} letters: {sentence[:200]!r}", error)
    if is_ours and any(mark in sentence for mark in "\n\r\x00\x1b"):
        return found(f"more than one line, or letters that nobody can read: {sentence[:300]!r}", error)
    if is_ours and not any(name in sentence for name in path.relative_to(Path.cwd()).parts[1:]):  # folder or file
        return found(f"the file is not named: {sentence[:300]!r}", error)
    return {"outcome": "refused", "what": sentence}


def found(what: str, error: BaseException) -> dict[str, Any]:
    return {"outcome": "finding", "what": what, "trace": "".join(traceback.format_exception(error))[-6000:]}


# ── in the process that asks ──────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Campaign:
    """What became of some cases."""

    kind: str
    seed: int
    outcomes: Counter = field(default_factory=Counter)
    files: Counter = field(default_factory=Counter)  # cases of each valid file
    findings: list[dict[str, Any]] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)  # bytes after each case
    held: list[int] = field(default_factory=list)  # of these, bytes that something still asks for
    slowest: tuple[float, int] = (0.0, 0)  # seconds of computing, case

    def growth(self) -> int:
        """Bytes by which the process grew after the first fifth of its cases, in which all that is loaded is loaded."""
        late = self.resident[len(self.resident) // 5 :]
        return late[-1] - late[0] if late else 0

    def leak(self) -> float:
        """Bytes that a case leaves held on average, in the later half of them, the most and the least tenth aside.

        So a leak of every other case shows after some dozens, and a module that one case happens to import does not.
        """
        late = self.held[len(self.held) // 2 :]
        steps = sorted(after - before for before, after in pairwise(late))
        usual = steps[len(steps) // 10 : len(steps) - len(steps) // 10]
        return sum(usual) / len(usual) if usual else 0.0

    def report(self) -> str:
        again = f"python tests/fuzzing.py {self.kind} --seed {self.seed} --case"
        lines = [f"{again} {one['case']}  [{one.get('file', '?')}] {one['what']}" for one in self.findings]
        return "\n".join(lines)


class CaseProcess:
    """A process that runs cases, started anew when one of them ended it."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.process: subprocess.Popen | None = None

    def run(self, kind: str, seed: int, num_cases: int, first: int = 0) -> Campaign:
        campaign, next_case = Campaign(kind, seed), first
        while next_case < first + num_cases:
            self._ask(kind, seed, next_case, first + num_cases)
            if self._answer(START_SECONDS) != "ready":
                raise RuntimeError(f"The process {self._end()} before its first case:\n{self.log.read_text()[-4000:]}")
            for _ in range(next_case, first + num_cases):
                answer = self._answer(LOST_SECONDS)
                if answer is None:
                    campaign.findings.append(
                        {"case": next_case, "what": self._end(), "trace": self.log.read_text()[-4000:]}
                    )
                    campaign.outcomes["finding"] += 1
                    next_case += 1
                    break
                campaign.outcomes[answer["outcome"]] += 1
                campaign.files[answer["file"]] += 1
                campaign.resident.append(answer["resident"])
                campaign.held.append(answer["held"])
                campaign.findings += [answer] if answer["outcome"] == "finding" else []
                campaign.slowest = max(campaign.slowest, (answer["seconds"], answer["case"]))
                next_case = answer["case"] + 1
        return campaign

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()  # it has nothing to finish
            self.process.communicate()
            self.process = None

    def _ask(self, kind: str, seed: int, first: int, last: int) -> None:
        if self.process is None:
            surroundings = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
            surroundings |= {
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_VERBOSITY": "critical",
                "PYTHONWARNINGS": "ignore",
                "MALLOC_ARENA_MAX": "2",
            }
            self.process = subprocess.Popen(
                [sys.executable, __file__, "--serve"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log.open("w"),
                text=True,
                env=surroundings,
            )
            self.lines: queue.Queue[str] = queue.Queue()
            threading.Thread(target=self._listen, args=(self.process.stdout, self.lines), daemon=True).start()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"kind": kind, "seed": seed, "cases": [first, last]}) + "\n")
        self.process.stdin.flush()

    @staticmethod
    def _listen(stdout: Any, lines: queue.Queue) -> None:
        for line in stdout:
            lines.put(line)
        lines.put("")

    def _answer(self, seconds: float) -> Any:
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            return None
        return json.loads(line) if line else None

    def _end(self) -> str:
        """How the process ended, or that it had to be."""
        assert self.process is not None
        try:
            status = self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            status = None
        self.close()
        return "hung, where no signal came through" if status is None else f"ended the process with status {status}"


# ── by hand ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args()
    if options.serve:
        return serve()
    with tempfile.TemporaryDirectory() as temporary:
        process = CaseProcess(Path(temporary) / "log.txt")
        for kind in options.kinds:
            first, number = (0, options.cases) if options.case is None else (options.case, 1)
            campaign = process.run(kind, options.seed, number, first)
            figures = f"grew {campaign.growth() / 2**20:.1f} MiB, slowest {campaign.slowest[0]:.1f} s"
            details = campaign.report() if options.case is None else "".join(one["trace"] for one in campaign.findings)
            print(kind, options.seed, dict(campaign.outcomes), figures, details, sep="  ", flush=True)  # noqa: T201
        process.close()
    return None


if __name__ == "__main__":
    main()
