"""The process by which wandb writes dies or hangs; the program that it serves goes on and ends."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

DISTURBED = """
import os, signal, subprocess, sys, time
from pathlib import Path
from pmmrec.terminal import run_program
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.trackers import BackgroundTracker, tracker_openers

DISTURBANCE = signal.Signals[sys.argv.pop()]

def service():
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "wandb-core" in line]

def main() -> None:
    folder, _processes = Path.cwd(), Processes(MachineConfig(device="cpu"))
    opener = tracker_openers(("wandb",), folder, "project", "name", "")["wandb"]
    aside = BackgroundTracker("wandb", opener, lambda why: print("left out:", why, flush=True))
    aside.show({"loss": 1.0}, 1)
    until_s = time.monotonic() + 60
    while not (service() and list(folder.glob("wandb/offline-run-*/run-*.wandb"))) and time.monotonic() < until_s:
        time.sleep(0.1)
    (pid,) = service()
    print("service", pid, flush=True)
    os.kill(pid, DISTURBANCE)
    for step in range(2, 200):
        aside.show({"loss": 1.0}, step)
    aside.close(timeout_s=2)
    print("done", flush=True)

run_program(main)
"""


@pytest.mark.parametrize("disturbance", ["SIGKILL", "SIGSTOP"])
def test_a_service_of_wandb_that_dies_or_hangs_neither_ends_nor_holds_up_a_program(
    tmp_path: Path, disturbance: str
) -> None:
    said = tmp_path / "said.log"
    with said.open("w") as file:
        command = [sys.executable, "-c", DISTURBED, disturbance]
        own = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}  # that of other tests
        program = subprocess.Popen(command, cwd=tmp_path, env=own, stdout=file, stderr=file)
    try:
        assert program.wait(timeout=120) == 0, said.read_text()
    finally:
        program.kill()
        for pid in re.findall(r"^service (\d+)", said.read_text(), flags=re.MULTILINE):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
    text = said.read_text()
    assert "left out: " in text
    assert "\ndone\n" in text
