"""Run programs in child processes: start them, end them with all that they started, and report why they failed."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import signal
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from pmmrec.errors import MachineError, RecipeError

GRACE_S = 10.0  # between SIGTERM and SIGKILL
POLL_S = 0.05
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Ends a process group when a pipe closes that only the owner holds open, which `kill -9` of the owner closes as well.
_GUARD = """
read group || exit
cat > /dev/null
kill -s TERM -- "-$group" || exit
for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 1; kill -s 0 -- "-$group" || exit; done
kill -s KILL -- "-$group"
"""


class ChildProcess:
    """A command that runs in a session of its own: what it starts ends with it, and Ctrl-C reaches only the owner.

    It does not outlive its owner: a small shell ends it if the owner is killed first.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        kept_open: int | None = None,
    ) -> None:
        """Start it.

        Args:
            command: The program and its arguments; no shell reads them.
            log: The file for its output.
            environment: Its environment; None: that of this process.
            kept_open: A file, such as a lock, that stays open as long as it or anything it started lives.

        Raises:
            MachineError: If it cannot be started.
        """
        self.log, self.cpu_s = log, 0.0  # CPU seconds with those of its ended children; known once it has ended
        self._reaping, self._started_s = threading.Lock(), time.monotonic()
        self._guard = _guard(log)
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=None if environment is None else dict(environment),
                    start_new_session=True,
                    pass_fds=() if kept_open is None else (kept_open,),
                )
            self._guard_of(self._process.pid)
        except OSError as error:
            self._dismiss_guard()
            raise MachineError(f"{log}: its process cannot be started: {error}") from error

    @property
    def seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started_s

    def exit_code(self) -> int | None:
        """None while it runs; below 0: the signal that ended it."""
        with self._reaping:  # the system reports the end of a child only once
            if self._process.returncode is None:
                pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
                if pid:
                    self._process.returncode = os.waitstatus_to_exitcode(status)
                    self.cpu_s = usage.ru_utime + usage.ru_stime
                    self._signal(signal.SIGKILL)  # for what it started and left behind
                    self._dismiss_guard()
            return self._process.returncode

    def wait(self) -> int:
        """Wait for its end; returns its exit code."""
        while (code := self.exit_code()) is None:
            time.sleep(POLL_S)
        return code

    def ask_to_end(self) -> None:
        if self.exit_code() is None:
            self._signal(signal.SIGTERM)

    def force_to_end(self) -> None:
        if self.exit_code() is None:
            self._signal(signal.SIGKILL)
        self.wait()

    def failure(self) -> str:
        """Why it failed, in one line: its error message, the signal that ended it, or its last line of output."""
        return failure_reason(self.log, self.wait())

    def _guard_of(self, group: int) -> None:
        pipe = self._guard.stdin
        assert pipe is not None  # noqa: S101 - opened with PIPE
        pipe.write(f"{group}\n".encode())
        pipe.flush()

    def _dismiss_guard(self) -> None:
        self._guard.kill()
        self._guard.communicate()  # closes the pipe

    def _signal(self, sign: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, sign)


def _guard(log: Path) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(  # noqa: S603 - fixed words
            ["/bin/sh", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise MachineError(f"{log}: its process cannot be guarded: {error}") from error


def end_all(processes: Collection[ChildProcess], grace_s: float = GRACE_S) -> None:
    """End processes and all they started: SIGTERM, at most `grace_s` of patience, then SIGKILL."""
    for process in processes:
        process.ask_to_end()
    until_s = time.monotonic() + grace_s
    while any(process.exit_code() is None for process in processes) and time.monotonic() < until_s:
        time.sleep(POLL_S)
    for process in processes:
        process.force_to_end()


def failure_reason(log: Path, code: int) -> str:
    """Why a process with this output and exit code failed, in one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    output = [line.rstrip() for line in lines if line.strip()]
    starts = [place for place, line in enumerate(output) if line.startswith("error: ")]
    if starts:
        first, *rest = output[starts[-1] :]
        details = itertools.takewhile(lambda line: line.startswith("  "), rest)
        return "; ".join([first.removeprefix("error: "), *(line.strip() for line in details)])
    if code < 0:
        names = {sign.value: sign.name for sign in signal.Signals}
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"ended by {names.get(-code, f'signal {-code}')}{hint}"
    return f"ended with exit code {code}" + (f": {output[-1].strip()}" if output else " and said nothing")


@contextmanager
def folder_lock(folder: Path, who: str) -> Iterator[int]:
    """Lock a folder, which is made if needed; processes that inherit the open lock hold it even if its owner dies.

    RecipeError if it is locked (by `who`, for the message), MachineError if the folder cannot be locked.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise MachineError(f"{folder}: cannot be worked in: {error.strerror}; choose another folder") from error
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecipeError(f"{folder}: {who} works here; wait, or end it") from error
        except OSError as error:
            raise MachineError(f"{folder}: cannot be locked: {error.strerror}; use a folder on a local disk") from error
        yield lock
    finally:
        os.close(lock)


@contextmanager
def signals_as_interrupts() -> Iterator[threading.Event]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt, as Ctrl-C is, so that child processes are ended too.

    The event is set as well, for a loop to check: Python drops a KeyboardInterrupt that is raised in a finalizer.
    Signals that are ignored, as under `nohup`, stay ignored.
    """
    interrupted = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    handled = [sign for sign in INTERRUPTS if signal.getsignal(sign) is not signal.SIG_IGN]
    before = {sign: signal.signal(sign, interrupt) for sign in handled}
    try:
        yield interrupted
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
