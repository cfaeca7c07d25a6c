"""Run programs in processes of their own: start and follow them, end all they started, tell why they failed."""

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

GRACE_S = 10.0  # between being asked to end and being ended
POLL_S = 0.05
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Waits for the end of a pipe that only the owner of a process holds open, so also for `kill -9` of the owner.
_GUARD = """
read group || exit
cat > /dev/null
kill -s TERM -- "-$group" || exit
for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 1; kill -s 0 -- "-$group" || exit; done
kill -s KILL -- "-$group"
"""


class ChildProcess:
    """A command at work in a session of its own: what it starts ends with it, and Ctrl-C reaches us alone.

    It does not outlive us: a small shell beside it ends it where we are killed before it is over.
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
            log: A file that takes what it says.
            environment: Its environment; None: ours.
            kept_open: A file that stays open while it or anything it started lives, such as a lock.

        Raises:
            MachineError: Where it cannot be started.
        """
        self.log, self.cpu_s = log, 0.0  # CPU seconds once it has ended, those of its own ended children among them
        self._reaping, self._started_s = threading.Lock(), time.monotonic()
        self._guard = _guard(log)
        try:
            with log.open("wb") as said:
                self._process = subprocess.Popen(  # noqa: S603 - our own program, no shell
                    list(command),
                    stdin=subprocess.DEVNULL,
                    stdout=said,
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
        """Since it was started."""
        return time.monotonic() - self._started_s

    def exit_code(self) -> int | None:
        """None while it runs; below 0: the signal that ended it."""
        with self._reaping:  # whoever asks the system first is told, and no one after
            if self._process.returncode is None:
                pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
                if pid:
                    self._process.returncode = os.waitstatus_to_exitcode(status)
                    self.cpu_s = usage.ru_utime + usage.ru_stime
                    self._signal(signal.SIGKILL)  # to what it started and left behind
                    self._dismiss_guard()
            return self._process.returncode

    def wait(self) -> int:
        """Its exit code, once it has ended."""
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

    def complaint(self) -> str:
        """Why it failed, in one line: its own error message, the signal that ended it, or its last words."""
        return complaint(self.log, self.wait())

    def _guard_of(self, group: int) -> None:
        pipe = self._guard.stdin
        assert pipe is not None  # noqa: S101 - asked for
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
    """End processes and all they started: ask, wait for `grace_s` at most, then force."""
    for process in processes:
        process.ask_to_end()
    until_s = time.monotonic() + grace_s
    while any(process.exit_code() is None for process in processes) and time.monotonic() < until_s:
        time.sleep(POLL_S)
    for process in processes:
        process.force_to_end()


def complaint(log: Path, code: int) -> str:
    """Why a process failed that said what is in `log` and ended with `code`, in one line."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    said = [line.rstrip() for line in lines if line.strip()]
    starts = [place for place, line in enumerate(said) if line.startswith("error: ")]
    if starts:
        first, *rest = said[starts[-1] :]
        details = itertools.takewhile(lambda line: line.startswith("  "), rest)
        return "; ".join([first.removeprefix("error: "), *(line.strip() for line in details)])
    if code < 0:
        names = {sign.value: sign.name for sign in signal.Signals}
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return f"ended by {names.get(-code, f'signal {-code}')}{hint}"
    return f"ended with exit code {code}" + (f": {said[-1].strip()}" if said else " and said nothing")


@contextmanager
def alone_in(folder: Path, who: str) -> Iterator[int]:
    """A lock on a folder, which is made; processes that keep it open hold it too, however its owner ends.

    RecipeError where `who` else works there, MachineError where nothing can be locked.
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
    """Turn SIGTERM and SIGHUP into what Ctrl-C is, so that processes at work are ended too.

    The event is set as well: Python drops a KeyboardInterrupt that is raised in a finalizer, and a loop that looks at
    the event ends all the same. Signals that are ignored, as under `nohup`, stay so.
    """
    asked = threading.Event()

    def interrupt(_number: int, _frame: object) -> None:
        asked.set()
        raise KeyboardInterrupt

    heard = [sign for sign in INTERRUPTS if signal.getsignal(sign) is not signal.SIG_IGN]
    before = {sign: signal.signal(sign, interrupt) for sign in heard}
    try:
        yield asked
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
