"""Signals to a launcher, and to all that it started: the program ends itself, and its exit code comes through."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from launched import a_program

from pmmrec.launch import LaunchCommand, LaunchFile

pytestmark = pytest.mark.long


@pytest.mark.parametrize("asked_are", ["front", "launcher", "all"])
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGUSR1])
def test_a_program_is_left_to_end_itself_when_its_launcher_is_asked_to(
    sign: signal.Signals, asked_are: str, tmp_path: Path
) -> None:
    program = a_program(
        tmp_path,
        "def end(*_):\n"
        "    for sign in (signal.SIGTERM, signal.SIGUSR1): signal.signal(sign, signal.SIG_IGN)  # as a run does\n"
        "    sys.exit(75)\n"
        "for sign in (signal.SIGTERM, signal.SIGUSR1): signal.signal(sign, end)\n"
        "(here / f\"ready-{os.environ['RANK']}\").touch()\n"
        "time.sleep(60)\n",
    )
    command = LaunchCommand.of(LaunchFile.read("two_cpu"), program, ())
    call = f"LaunchCommand({command.words!r}, {command.environment!r}).run('pmmrec.train.start', os.environ)"
    asked = f"import os, sys; from pmmrec.launch import LaunchCommand; sys.exit({call})"
    launching = subprocess.Popen([sys.executable, "-c", asked])
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert launching.poll() is None
        time.sleep(0.05)
    front = psutil.Process(launching.pid)
    (launcher,) = front.children()
    for process in {"front": [front], "launcher": [launcher], "all": [front, *front.children(recursive=True)]}[
        asked_are
    ]:
        process.send_signal(sign)
    watchdog = threading.Timer(60, launching.kill)
    watchdog.start()
    assert launching.wait() == 75
    watchdog.cancel()


@pytest.mark.parametrize("asked_is", ["front", "launcher"])
def test_a_program_that_a_signal_ends_while_it_is_imported_has_been_stopped(asked_is: str, tmp_path: Path) -> None:
    program = a_program(tmp_path, "(here / f\"ready-{os.environ['RANK']}\").touch()\ntime.sleep(60)\n")
    command = LaunchCommand.of(LaunchFile.read("two_cpu"), program, ())
    call = f"LaunchCommand({command.words!r}, {command.environment!r}).run('pmmrec.train.start', os.environ)"
    asked = f"import os, sys; from pmmrec.launch import LaunchCommand; sys.exit({call})"
    launching = subprocess.Popen([sys.executable, "-c", asked])
    while len(list(tmp_path.glob("ready-*"))) < 2:
        assert launching.poll() is None
        time.sleep(0.05)
    front = psutil.Process(launching.pid)
    {"front": front, "launcher": front.children()[0]}[asked_is].send_signal(signal.SIGTERM)
    watchdog = threading.Timer(60, launching.kill)
    watchdog.start()
    assert launching.wait() == 75
    watchdog.cancel()
