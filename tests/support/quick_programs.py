"""`ChildProcess` without what a program takes to import torch and pmmrec, for tests that start many programs."""

from __future__ import annotations

import os
import resource
import runpy
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any

import pytest
from worker_group import SERVER

from pmmrec.errors import MachineError
from pmmrec.processes import ChildProcess

_ONE = threading.Lock()  # two threads that ask how a process ended would take the answer from one another


@contextmanager
def quick_programs() -> Iterator[None]:
    """Let programs of ours be copies of a process that has imported torch and pmmrec once."""
    with pytest.MonkeyPatch.context() as patch:
        for name, method in {"__init__": _start, "exit_code": _exit_code, "_signal": _signal}.items():
            patch.setattr(ChildProcess, name, method)
        yield


class _Kept:
    """A file that stays open in a process that is started."""

    def __init__(self, file: int) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (DupFd(self.file),)


def _detached(file: Any) -> int:
    kept: int = file.detach()
    return kept


def _start(
    self: Any,
    command: Sequence[str],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    kept_open: int | None = None,
) -> None:
    assert command[0] == sys.executable
    try:
        log.write_bytes(b"")
    except OSError as error:
        raise MachineError(f"{log}: its process cannot be started: {error}") from error
    self.log, self.cpu_s, self._reaping, self._started_s = log, 0.0, threading.Lock(), time.monotonic()
    told, self._usage = tempfile.mkstemp()
    os.close(told)
    words = [word for word in command[1:] if word != "-u"]
    given = (words, dict(environment or os.environ), Path.cwd(), log, self._usage)
    with _ONE:
        self._process = SERVER.Process(target=_run, args=(*given, None if kept_open is None else _Kept(kept_open)))
        self._process.start()


def _exit_code(self: Any) -> int | None:
    with _ONE:
        code: int | None = self._process.exitcode
    if code is not None and Path(self._usage).exists():
        self.cpu_s = float(Path(self._usage).read_text() or 0)
        Path(self._usage).unlink()
        self._signal(signal.SIGKILL)  # to what it started and left behind
    return code


def _signal(self: Any, sign: signal.Signals) -> None:
    try:
        os.killpg(self._process.pid, sign)
    except ProcessLookupError:  # it has no group of its own yet, or is gone
        if self._process.exitcode is None:
            os.kill(self._process.pid, sign)


def _run(
    words: list[str], environment: dict[str, str], folder: Path, log: Path, usage: str, _kept_open: int | None
) -> None:
    """Be `python words` in a session of its own."""
    os.setsid()
    output = os.open(log, os.O_WRONLY | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = words[:1] + words[2:]
            exec(words[1], {"__name__": "__main__"})  # noqa: S102 - a program of ours
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    finally:
        used = resource.getrusage(resource.RUSAGE_SELF)
        Path(usage).write_text(str(used.ru_utime + used.ru_stime))
