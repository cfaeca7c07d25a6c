"""Signals to a launcher and its processes: the program ends itself, and the launcher ends with its exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from launched import a_program

from pmmrec.launch import LaunchCommand, LaunchFile

pytestmark = pytest.mark.long

WITHIN_S = 120
READY = "(here / f\"ready-{os.environ.get('RANK', '0')}\").touch()\n"


def _launcher(program: Path, launch: str = "two_cpu") -> subprocess.Popen[str]:
    """A process that becomes the launcher of a program, in a process group of its own."""
    command = LaunchCommand.of(LaunchFile.read(launch), program, ())
    call = f"LaunchCommand({command.words!r}, {command.environment!r}).start('pmmrec.train.start', os.environ)"
    answers = "signal.signal(signal.SIGINT, signal.SIG_DFL)"  # shells let background jobs ignore it
    words = [sys.executable, "-c", f"import os, signal; from pmmrec.launch import LaunchCommand; {answers}; {call}"]
    return subprocess.Popen(words, start_new_session=True, stderr=subprocess.PIPE, text=True)


def _wait_until_ready(launcher: subprocess.Popen[str], folder: Path, processes: int) -> None:
    while len(list(folder.glob("ready-*"))) < processes:
        assert launcher.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize("signalled", ["launcher", "all"])
@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGUSR1])
def test_a_program_ends_itself_when_its_launcher_gets_a_stop_signal(
    sign: signal.Signals, signalled: str, tmp_path: Path
) -> None:
    program = a_program(
        tmp_path,
        "def end(*_):\n"
        "    for sign in (signal.SIGTERM, signal.SIGUSR1): signal.signal(sign, signal.SIG_IGN)  # as a run does\n"
        "    sys.exit(75)\n"
        "for sign in (signal.SIGTERM, signal.SIGUSR1): signal.signal(sign, end)\n"
        f"{READY}time.sleep(60)\n",
    )
    launcher = _launcher(program)
    _wait_until_ready(launcher, tmp_path, 2)
    own = psutil.Process(launcher.pid)
    for process in [own] if signalled == "launcher" else [own, *own.children(recursive=True)]:
        process.send_signal(sign)
    assert launcher.wait(WITHIN_S) == 75


def test_a_program_that_a_signal_ends_while_it_is_imported_has_been_stopped(tmp_path: Path) -> None:
    launcher = _launcher(a_program(tmp_path, f"{READY}time.sleep(60)\n"))
    _wait_until_ready(launcher, tmp_path, 2)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(WITHIN_S) == 75


def test_a_launcher_that_gets_a_stop_signal_while_it_is_imported_has_been_stopped(tmp_path: Path) -> None:
    launcher = _launcher(a_program(tmp_path, "time.sleep(60)\n"))
    while "pmmrec.train.start" not in psutil.Process(launcher.pid).cmdline():
        assert launcher.poll() is None
        time.sleep(0.01)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(WITHIN_S) == 75


def test_ctrl_c_ends_a_program_of_one_process_and_its_launcher_waits_for_it(tmp_path: Path) -> None:
    (tmp_path / "one.yaml").write_text("distributed_type: 'NO'\nnum_processes: 1\nuse_cpu: true\n")
    program = a_program(
        tmp_path,
        f"try:\n    {READY}    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(2)\n    (here / 'ended').touch()\n    sys.exit(130)\n",
    )
    launcher = _launcher(program, str(tmp_path / "one.yaml"))
    _wait_until_ready(launcher, tmp_path, 1)
    os.killpg(launcher.pid, signal.SIGINT)
    _, said = launcher.communicate(timeout=WITHIN_S)
    assert launcher.returncode == 130
    assert (tmp_path / "ended").exists()
    assert "Traceback" not in said
