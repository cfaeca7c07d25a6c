"""Child processes: they are followed, ended with all that they started, and their failures are explained."""

from __future__ import annotations

import fcntl
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from pmmrec import processes as processes_file
from pmmrec.errors import MachineError, RecipeError
from pmmrec.processes import ChildProcess, end_all, failure_reason, folder_lock, signals_as_interrupts


@contextmanager
def lock_of(path: Path) -> Iterator[int]:
    """A lock that we let go of at once: whoever else has the file open holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    yield lock
    os.close(lock)


def wait_until_free(path: Path) -> None:
    with path.open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)


def shell(words: str, folder: Path, kept_open: int | None = None) -> ChildProcess:
    return ChildProcess(["sh", "-c", words], folder / "a.log", kept_open=kept_open)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    """What opens it waits for whoever opens its other end."""
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


def test_an_exit_code_is_none_before_the_end_and_the_same_ever_after(tmp_path: Path, fifo: Path) -> None:
    process = shell(f"read _ < {fifo}; exit 3", tmp_path)
    assert process.exit_code() is None
    before_s = process.seconds
    fifo.write_text("end\n")
    assert [process.wait(), process.wait(), process.exit_code()] == [3, 3, 3]
    assert process.seconds > before_s > 0


def test_cpu_seconds_include_those_of_ended_children(tmp_path: Path) -> None:
    work = "import time; [None for _ in iter(lambda: time.process_time() < 0.3, False)]"
    process = ChildProcess(["sh", "-c", f"'{sys.executable}' -S -c '{work}'; true"], tmp_path / "a.log")
    assert process.wait() == 0
    assert 0.3 <= process.cpu_s < 5


def test_its_environment_is_the_one_that_is_given(tmp_path: Path) -> None:
    ChildProcess(["/bin/sh", "-c", "echo $WORD-$HOME"], tmp_path / "a.log", environment={"WORD": "one"}).wait()
    assert (tmp_path / "a.log").read_text() == "one-\n"


def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    with lock_of(tmp_path / "lock") as lock:
        process = shell("sleep 100 & exit 1", tmp_path, lock)
    assert process.wait() == 1
    wait_until_free(tmp_path / "lock")


def test_ending_a_process_ends_what_it_started_even_if_that_ignores_signals(tmp_path: Path, fifo: Path) -> None:
    with lock_of(tmp_path / "lock") as lock:
        process = shell(f"(trap '' TERM; echo deaf > {fifo}; while :; do sleep 0.1; done) & wait", tmp_path, lock)
    assert fifo.read_text() == "deaf\n"
    end_all([process])
    assert process.exit_code() == -signal.SIGTERM
    wait_until_free(tmp_path / "lock")


def test_processes_that_ignore_signals_are_killed_after_one_shared_grace_period(
    tmp_path: Path, fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaf = []
    for place in range(3):
        words = f"trap '' TERM; echo deaf > {fifo}; while :; do sleep 0.1; done"
        deaf.append(ChildProcess(["sh", "-c", words], tmp_path / f"{place}.log"))
        assert fifo.read_text() == "deaf\n"
    clock = SimpleNamespace(now_s=0.0, monotonic=lambda: clock.now_s)

    def sleep(seconds: float) -> None:
        if clock.now_s < 10:
            assert [process.exit_code() for process in deaf] == [None] * 3
        clock.now_s += seconds

    clock.sleep = sleep
    monkeypatch.setattr(processes_file, "time", clock)
    end_all(deaf, grace_s=10)
    assert [process.exit_code() for process in deaf] == [-signal.SIGKILL] * 3
    assert clock.now_s >= 10


def test_a_process_that_ended_well_is_not_ended_again(tmp_path: Path) -> None:
    process = shell("exit 0", tmp_path)
    process.wait()
    end_all([process])
    assert process.exit_code() == 0


def test_a_missing_program_is_a_machine_error(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"a\.log: its process cannot be started: .*nowhere"):
        ChildProcess([str(tmp_path / "nowhere")], tmp_path / "a.log")


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ("step 1\nerror: first\nerror: the reason\n  one\n  two\n\nbye\n", 2, "the reason; one; two"),
        ("step 1\n\nTraceback\n  ValueError: no\n\n", 1, "ended with exit code 1: ValueError: no"),
        ("", 7, "ended with exit code 7 and said nothing"),
        ("step 1\n", -signal.SIGTERM, "ended by SIGTERM"),
        ("step 1\n", -signal.SIGKILL, "ended by SIGKILL, perhaps for want of memory"),
        ("", -40, "ended by signal 40"),
        ("\xff\n", 1, "ended with exit code 1: \xff"),
    ],
)
def test_a_failure_is_the_last_error_the_signal_or_the_last_line(
    tmp_path: Path, words: str, code: int, expected: str
) -> None:
    (tmp_path / "a.log").write_text(words, encoding="utf-8")
    assert failure_reason(tmp_path / "a.log", code) == expected


def test_a_log_that_is_not_text_still_gives_a_failure(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"error: \xff\n")
    assert failure_reason(tmp_path / "a.log", 1) == "\ufffd"


def test_a_folder_stays_locked_until_the_block_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    told = pytest.raises(RecipeError, match="folder: another works here; wait, or end it")
    with folder_lock(folder, "another"), told, folder_lock(folder, "another"):
        pass
    with folder_lock(folder, "another"):
        pass


def test_a_child_that_keeps_the_lock_open_holds_it_after_its_owner_has_gone(tmp_path: Path) -> None:
    with folder_lock(tmp_path, "a run that was left") as lock:
        process = shell("exec sleep 100", tmp_path, lock)  # no child of its own would be waited for
    with (
        pytest.raises(RecipeError, match="a run that was left works here"),
        folder_lock(tmp_path, "a run that was left"),
    ):
        pass
    end_all([process])
    with folder_lock(tmp_path, "a run that was left"):
        pass


def test_a_folder_that_cannot_be_made_to_lock_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="file: cannot be worked in"), folder_lock(tmp_path / "file", "another"):
        pass


@pytest.fixture
def heeded(sign: signal.Signals) -> Iterator[None]:
    """A signal that is not ignored, as it is where tests run under `nohup` or in the background."""
    before = signal.signal(sign, signal.SIG_DFL)
    yield
    signal.signal(sign, before)


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.usefixtures("heeded")
def test_signals_are_keyboard_interrupts_inside_the_block_only(sign: signal.Signals) -> None:
    before = signal.getsignal(sign)
    with signals_as_interrupts(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(sign)
    assert signal.getsignal(sign) == before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_python_drops_is_noted() -> None:
    class Finalized:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    with signals_as_interrupts() as asked:
        Finalized()
        assert asked.is_set()


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_as_interrupts() as asked:
            signal.raise_signal(signal.SIGHUP)
        assert not asked.is_set()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
