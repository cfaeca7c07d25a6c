"""Trackers mirror a run below its folder; what is not installed is told before anything is made."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Pmmrec

from pmmrec.errors import MachineError
from pmmrec.train.trackers import boards


def _wait_until(is_so: Callable[[], bool], seconds: float = 30) -> None:
    end_s = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.1)


def _sasrec(pmmrec: Pmmrec, world: Path, *settings: str) -> None:
    sizes = ("model.width=16", "train.epochs=1", "cache=c", "machine.device=cpu", "name=watched")
    on = ("--from", "none", "--on", world / "boutique")
    result = pmmrec("finetune", "finetune/sasrec", *on, *sizes, *settings)
    assert result.code == 0, result.output


def _assert_events_are_complete(run: Path) -> None:
    kinds = [json.loads(line)["event"] for line in (run / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kinds == ["parameters", "validation", "gradient_norm", "train", "epoch", "validation", "finished"]


def test_wandb_writes_offline_below_the_run_and_nowhere_else(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    _sasrec(pmmrec, world, "machine.trackers=[wandb]")
    run = home / "runs" / "watched"
    (record,) = run.glob("wandb/offline-run-*/run-*.wandb")
    _wait_until(lambda: b"train/dap/accuracy" in record.read_bytes())  # another process writes it, a moment later
    assert {path.name for path in home.iterdir()} <= {"runs", "c"}
    _assert_events_are_complete(run)


def test_tensorboard_holds_every_number_below_the_run(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _sasrec(pmmrec, world, "machine.trackers=[tensorboard]")
    run = home / "runs" / "watched"
    written = EventAccumulator(str(run / "tensorboard")).Reload()
    first = next(json.loads(line) for line in (run / "events.jsonl").open() if '"train"' in line)
    (loss,) = written.Scalars("train/loss")
    assert (loss.step, loss.value) == (1, pytest.approx(first["loss"]))
    assert [value.step for value in written.Scalars("validation/mean.ndcg@10")] == [0, 1]
    assert {path.name for path in home.iterdir()} <= {"runs", "c"}
    _assert_events_are_complete(run)


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_tracker_that_is_not_installed_is_told_before_a_run_is_made(
    home: Path, world: Path, pmmrec: Pmmrec, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    monkeypatch.setitem(sys.modules, tracker, None)  # what Python notes of a module that cannot be imported
    told = rf"{tracker} is not installed; pip install 'pmmrec\[{tracker}\]'"
    with pytest.raises(MachineError, match=told):
        boards((tracker,), home, "project", "name", "")
    on = ("--from", "none", "--on", world / "boutique")
    result = pmmrec("finetune", "finetune/sasrec", *on, f"machine.trackers=[{tracker}]", "cache=c")
    assert result.code == 4
    assert not (home / "runs").exists()


DISTURBED = """
import os, signal, subprocess, sys, time
from pathlib import Path
from pmmrec.terminal import run_program
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.trackers import Aside, boards

DISTURBANCE = signal.Signals[sys.argv.pop()]

def service():
    listed = subprocess.run(["ps", "-o", "pid=,args=", "--ppid", str(os.getpid())], capture_output=True, text=True)
    return [int(line.split()[0]) for line in listed.stdout.splitlines() if "wandb-core" in line]

def main() -> None:
    folder, _processes = Path.cwd(), Processes(MachineConfig(device="cpu"))
    opener = boards(("wandb",), folder, "project", "name", "")["wandb"]
    aside = Aside("wandb", opener, lambda why: print("left out:", why, flush=True))
    aside.show({"loss": 1.0}, 1)
    until_s = time.monotonic() + 60
    while not (service() and list(folder.glob("wandb/offline-run-*/run-*.wandb"))) and time.monotonic() < until_s:
        time.sleep(0.1)
    (pid,) = service()
    print("service", pid, flush=True)
    os.kill(pid, DISTURBANCE)
    for step in range(2, 200):
        aside.show({"loss": 1.0}, step)
    aside.close(patience_s=2)
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


def test_an_unknown_tracker_is_refused_by_the_recipe(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    on = ("--from", "none", "--on", world / "boutique")
    result = pmmrec("finetune", "finetune/sasrec", *on, "machine.trackers=[weights]")
    assert result.code == 2
    assert "machine.trackers[0]: " in result.output
