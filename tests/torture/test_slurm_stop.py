"""Slurm tells one machine of a run to end; both do, and the job is asked back."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import SMALL, sources
from ports import free_port
from slurm import job, log_of, slurm_in

pytestmark = pytest.mark.long

# What a tracker does that is long in closing, as over a slow network.
SLOW_WANDB = """
import time

def init(**_settings):
    return Run()

class Run:
    def log(self, values, step=None, **_more): ...
    def finish(self):
        time.sleep(5)
"""


def test_a_run_that_one_machine_was_told_to_end_is_asked_back_though_the_other_still_closes_its_trackers(
    tmp_path: Path, world: Path
) -> None:
    cluster = tmp_path
    slurm_in(cluster)
    (cluster / "wandb.py").write_text(SLOW_WANDB)
    home = [f"{place}={cluster / place}" for place in ("runs", "hub", "cache")]
    settings = (*SMALL, *sources(world), *home, "name=told", "train.epochs=1000", "machine.trackers=[wandb]")
    path = f"{cluster}:{os.environ.get('PYTHONPATH', '')}"
    words = ("pretrain/tiny", *settings, "--processes-per-node", "1")
    number = str(free_port(20_000, 29_999) - 20_000)  # of a job whose port nobody has
    told = {"LAUNCH": "two_cpu", "SLURM_JOB_ID": number, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    with (cluster / "said").open("w") as said:
        asked = subprocess.Popen(
            **job(cluster, *words, hosts=("127.0.0.1", "127.0.0.1"), **told), stdout=said, stderr=subprocess.STDOUT
        )
    try:
        events = cluster / "runs/told/events.jsonl"
        while not (events.exists() and '"train"' in events.read_text()):
            assert asked.poll() is None, (cluster / "said").read_text()
            time.sleep(0.05)
        os.kill(int(log_of(cluster, "task")[1]), signal.SIGUSR1)
        assert asked.wait(timeout=120) == 75, (cluster / "said").read_text()
    finally:
        for task in map(int, log_of(cluster, "task")):
            with suppress(ProcessLookupError):
                os.kill(task, signal.SIGINT)
        asked.kill()
        asked.wait()
    assert log_of(cluster, "scontrol") == [f"requeue {number}"]
    assert list((cluster / "runs/told/state").glob("step-*"))
