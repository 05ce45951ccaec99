"""One command for one folder: who is refused, who is not, and what becomes of the lock."""

import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from dying_process import in_a_child

from modeling_htsat import processes
from modeling_htsat.processes import only_one


@pytest.fixture
def lock(tmp_path) -> Path:
    return tmp_path / "lock"


def take(lock: Path) -> str:
    """What another process is told that wants the lock."""

    def work() -> None:
        with only_one(lock, "somebody is at work"):
            pass

    end = in_a_child(work)
    assert end.status == (99 if end.said else 0), end
    return end.said


def test_a_second_process_is_refused_until_the_first_has_ended(lock):
    with only_one(lock, "unused"):
        for _ in range(2):  # who was refused has not let go of it for the one that holds it
            assert take(lock).endswith("ValueError: somebody is at work\n")
    assert not lock.exists()
    assert take(lock) == ""


def test_nor_is_it_taken_twice_in_one_process_or_lost_when_somebody_reads_it(lock):
    with only_one(lock, "unused"):
        assert lock.read_bytes() == b""
        with pytest.raises(ValueError, match="somebody is at work"), only_one(lock, "somebody is at work"):
            pass
        assert "somebody is at work" in take(lock)


def test_the_lock_is_let_go_of_when_work_fails(lock):
    with pytest.raises(KeyError), only_one(lock, "unused"):
        raise KeyError
    assert not lock.exists()
    assert take(lock) == ""


def test_a_worker_that_outlives_its_killed_parent_keeps_nobody_out(lock):
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            with only_one(lock, "unused"):
                worker = os.fork()
                if worker == 0:
                    time.sleep(60)
                else:
                    os.write(writing, str(worker).encode())
                    os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(parent, 0)
    worker = psutil.Process(int(os.read(reading, 100)))
    try:
        assert lock.exists()
        assert take(lock) == ""
        assert worker.status() == psutil.STATUS_SLEEPING
    finally:
        worker.kill()


def test_a_lock_that_is_removed_just_before_it_is_taken_is_taken_anew(lock, monkeypatch):
    """Between its opening and its locking, by the one before; what is locked then is what nobody else sees."""
    real_flock, calls = processes.fcntl.flock, []

    def removed_first(*arguments) -> None:
        if not calls:
            lock.unlink()
        calls.append(arguments)
        real_flock(*arguments)

    monkeypatch.setattr(processes.fcntl, "flock", removed_first)
    with only_one(lock, "unused"):
        assert len(calls) == 2
        assert "somebody is at work" in take(lock)


def test_a_child_that_comes_to_the_end_of_the_work_leaves_the_lock_to_its_parent(lock):
    with ExitStack() as work:
        work.enter_context(only_one(lock, "unused"))
        assert in_a_child(work.close).status == 0
        assert "somebody is at work" in take(lock)


def test_who_finds_the_lock_of_another_in_its_place_leaves_it_there(lock):
    with ExitStack() as second:
        with only_one(lock, "unused"):
            lock.unlink()  # as `htsat prepare` does with the folder around it
            second.enter_context(only_one(lock, "unused"))
        assert "somebody is at work" in take(lock)


def test_a_link_in_the_place_of_the_lock_is_not_followed(lock, tmp_path):
    (tmp_path / "precious").write_text("keep this")
    lock.symlink_to(tmp_path / "precious")
    with only_one(lock, "unused"):
        assert not lock.is_symlink()
    assert (tmp_path / "precious").read_text() == "keep this"


def test_where_a_file_system_has_no_locks_work_goes_on(lock, monkeypatch):
    def refuse(*arguments) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(processes.fcntl, "flock", refuse)
    with only_one(lock, "unused"):
        assert lock.exists()
    assert not lock.exists()
