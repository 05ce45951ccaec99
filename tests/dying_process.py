"""A process that is killed at a chosen step of its writing, or finds the disk full or read-only: forked from the test.

Whatever has been imported is there already, so that a child begins its work in milliseconds.
"""

import mmap
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

NOBODY = 65_534
TIME_LIMIT_SECONDS = 300
CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate")
Change = Callable[[], object]  # what befalls the child before its work begins


class End(NamedTuple):
    """How a child ended: by a signal, or with a status and what it wrote to standard error."""

    signal: int
    status: int
    said: str


def in_a_child(work: Callable[[], Any], *changes: Change) -> End:
    """Fork, change the child, do the work there; its status is the number that work returns, 99 for a traceback."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _be_a_child(work, changes, writing)
    os.close(writing)
    with open(reading, "rb") as said:
        text = said.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return End(os.WTERMSIG(status), 0, text)
    return End(0, os.waitstatus_to_exitcode(status), text)


def _be_a_child(work: Callable[[], Any], changes: tuple[Change, ...], writing: int) -> None:
    status = 99
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(TIME_LIMIT_SECONDS)  # a child that hangs is a failure, not a test without end
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.dup2(writing, 2)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
        for change in changes:
            change()
        answer = work()
        status = answer if isinstance(answer, int) else 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 98
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


class Steps:
    """Counts in the child how often Python opens a file to write, moves, makes or removes something in a folder.

    What libraries write on their own between two such steps is written by then; `killed_at_byte` does the rest.
    """

    def __init__(self, folder: Path, last: int = 0):
        self.folder, self.last = str(folder), last  # SIGKILL comes before the last; 0: never
        self.shared = mmap.mmap(-1, 8)  # with the child, which may be dead by the time that one asks

    @property
    def count(self) -> int:
        return int.from_bytes(self.shared[:8], "little")

    def __call__(self) -> None:
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in CHANGES and not (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)):
            return
        path = arguments[0]
        name = os.fsdecode(path) if isinstance(path, str | bytes | os.PathLike) else "/"
        if name.startswith(self.folder) or not name.startswith("/"):  # relative ones are what rmtree removes
            self.shared[:8] = (self.count + 1).to_bytes(8, "little")
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)


def killed_at_byte(number: int) -> Change:
    """The system ends the process in the middle of writing: when any file grows beyond so many bytes."""

    def change() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # ends it, and cannot be caught by then
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, most))

    return change


def files_no_larger_than(number: int) -> Change:
    """Writing beyond so many bytes fails, as it does on a full disk."""

    def change() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (number, most))

    return change


def without_rights() -> None:
    """Root may write anywhere, whatever a folder's mode says; nobody may not."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
