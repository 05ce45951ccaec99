"""Several processes for one command: they leave Ctrl-C to the process that started them, and do not outlive it.

And one command for one folder: whoever else would work in it meanwhile is refused.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context, parent_process
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def process_pool(
    jobs: int, initializer: Callable[..., object] | None = None, initargs: tuple[Any, ...] = ()
) -> Iterator[ProcessPoolExecutor]:
    """An executor whose processes are stopped, whatever they are at, when the block ends with an exception.

    Give it its work inside `with interrupts_ignored():`, for that is when the processes start. They are spawned on
    every system: torch has threads, and these do not survive a fork. Keep `initargs` below 64 kB, the size of a pipe:
    beyond, the processes start one after the other, each when the one before has imported everything.
    """
    pool = ProcessPoolExecutor(
        jobs, mp_context=get_context("spawn"), initializer=_begin_work, initargs=(initializer, initargs)
    )
    others = set(active_children())
    try:
        yield pool
    except BaseException:
        for worker in set(active_children()) - others:
            worker.terminate()  # nobody waits for what it is at
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def interrupts_ignored() -> Iterator[None]:
    """Processes that start in here leave Ctrl-C to their parent, and print nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may say what a signal does
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


def _begin_work(initializer: Callable[..., object] | None, initargs: tuple[Any, ...]) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if initializer is not None:
        initializer(*initargs)


def _end_with_parent() -> None:
    """A parent that is killed says goodbye to nobody, and its processes would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


@contextlib.contextmanager
def only_one(path: Path, refusal: str) -> Iterator[None]:
    """Hold the lock of a file, which is removed at the end; while somebody else holds it, that is a ValueError.

    The system lets go of the lock however the process ends. Whoever is forked meanwhile does not have it: workers
    outlive a parent that was killed by some seconds, and would keep out the one that is to go on.
    """
    lock = _take(path, refusal)
    _held.add(lock)
    try:
        yield
    finally:
        if lock in _held:  # not where a child comes here
            _held.remove(lock)
            if _is_at(path, lock):
                path.unlink()  # before it is let go of
            os.close(lock)


def _take(path: Path, refusal: str) -> int:
    while True:
        if path.is_symlink():  # nothing here makes one; in a folder of somebody else's it may lead anywhere
            path.unlink()
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise ValueError(refusal) from None
        except OSError:  # a file system without locks
            return lock
        if _is_at(path, lock):
            return lock
        os.close(lock)  # whoever held it has removed it meanwhile


def _is_at(path: Path, lock: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(lock))
    except FileNotFoundError:
        return False


_held: set[int] = set()


def _let_go_of_all() -> None:
    while _held:
        os.close(_held.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go_of_all)

__all__ = ["interrupts_ignored", "only_one", "process_pool"]
