"""One pretraining on two hosts that a cable joins: what one process trains; and the cable may be pulled.

The hosts are network namespaces, so this needs root.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from command_line import SMALL, Pmmrec, sources, working_in
from safetensors.torch import load_file
from two_hosts import NoHostsError, TwoHosts, two_hosts

from pmmrec.shipped import shipped_launch_files
from pmmrec.zoo.files import hashes_of

pytestmark = pytest.mark.long

PORT = 29500  # the same again for every run: a host has its own ports
PATIENCE_S = 600.0  # DeepSpeed builds an operation when it is first used
TIMES = ("time_s", "seconds", "users_per_s", "peak_memory_bytes")
# Without dropout, whose masks depend on how users are shared out; the larger eps keeps AdamW from blowing up the last
# bit of gradients near 0.
SETTINGS = (*SMALL, "model.user_encoder.dropout=0", "train.optimizer.eps=1e-3", "train.epochs=3", "train.log_every=1")


@pytest.fixture(scope="module")
def net() -> Iterator[TwoHosts]:
    try:
        with two_hosts() as made:
            yield made
    except NoHostsError as error:
        pytest.skip(f"two hosts cannot be made here: {error}")


@dataclass(frozen=True)
class Job:
    """The command of a user, started on both hosts; started again, it goes on."""

    net: TwoHosts
    home: Path
    name: str
    launch: str
    settings: tuple[str, ...]

    def start(self, *more: str) -> list[subprocess.Popen[bytes]]:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        environment.pop("GLOO_SOCKET_IFNAME", None)  # ours to find
        started = []
        for rank, host in enumerate(self.net.hosts):
            recipe = ("pretrain/tiny", *self.settings, f"name={self.name}", "cache=c", *more, "--resume")
            meet = ("--node-rank", rank, "--rendezvous", f"{self.net.hosts[0].address}:{PORT}")
            launch = ("--launch", self.launch, "--nodes", 2, "--processes-per-node", 1, *meet)
            words = (Path(sys.executable).with_name("pmmrec"), "pretrain", *recipe, *launch)
            started.append(host.start(words, self._said(rank), environment, self.home))
        return started

    def wait(self, started: list[subprocess.Popen[bytes]], patience_s: float = PATIENCE_S) -> list[int]:
        """Exit codes of both hosts, once both have ended by themselves."""
        until_s = time.monotonic() + patience_s
        try:
            return [run.wait(max(0.0, until_s - time.monotonic())) for run in started]
        except subprocess.TimeoutExpired:
            pytest.fail(f"not over after {patience_s:.0f} s:\n" + "\n".join(self.said))

    def finish(self) -> None:
        assert self.wait(self.start()) == [0, 0], "\n".join(self.said)

    @property
    def said(self) -> list[str]:
        return [self._said(rank).read_text(encoding="utf-8") for rank in (0, 1)]

    def _said(self, rank: int) -> Path:
        return self.home / f"{self.name}-{rank}.log"


def _cut_after(job: Job, steps: int) -> None:
    """Start a job, take host 1 off the net when so many steps are done, and see both hosts end, saying why."""
    # a patience far below the network's own, a quarter of an hour
    started = job.start("train.step_minutes=0.15")
    until_s = time.monotonic() + PATIENCE_S
    while len(_steps(job.home, job.name)) < steps:
        assert all(run.poll() is None for run in started), "\n".join(job.said)
        assert time.monotonic() < until_s, "\n".join(job.said)
        time.sleep(0.01)
    job.net.cut()
    try:
        assert job.wait(started, 60) == [4, 4], "\n".join(job.said)  # measured 12 s
    finally:
        job.net.restore()
    told = (
        r"step (\d+): process 1 of 2 \(on \S+\): not heard of for \d+ s, last .*: the process, its machine or the ne",
        r"step (\d+): process 1 of 2 has reached no other for \d+ s: the network, or the machine where all of them me",
    )
    for said, expected in zip(job.said, told, strict=True):
        found = re.search(f"error: (?:after )?{expected}", said)
        assert found is not None, said
        assert int(found[1]) >= steps
        assert "--resume goes on from the last state" in said


def _events(home: Path, name: str) -> list[dict[str, Any]]:
    path = home / "runs" / name / "events.jsonl"
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    events = [json.loads(line) for line in whole.splitlines()]
    return [{figure: value for figure, value in event.items() if figure not in TIMES} for event in events]


def _steps(home: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in _events(home, name) if event["event"] == "train"]


def _weights(home: Path, name: str) -> dict[str, str]:
    """The hash of each file of weights, of the best epoch and of what was published."""
    places = {"run": home / "runs" / name / "checkpoint", "hub": home / "hub" / name}
    found = {f"{place}/{file}": sum_ for place, folder in places.items() for file, sum_ in hashes_of(folder).items()}
    return {file: sum_ for file, sum_ in found.items() if file.endswith(".safetensors")}


def _widest(home: Path, name: str, other: str) -> float:
    """The largest difference of a weight between two runs, whose best epoch must be the same."""
    best = [json.loads((home / "runs" / run / "metrics.json").read_text())["best_epoch"] for run in (name, other)]
    assert best[0] == best[1] > 0
    folders = [home / "runs" / run / "checkpoint" for run in (name, other)]
    files = [sorted(path.relative_to(folder) for path in folder.rglob("*.safetensors")) for folder in folders]
    assert files[0] == files[1] != []
    widest = 0.0
    for file in files[0]:
        one, two = (load_file(folder / file) for folder in folders)
        assert one.keys() == two.keys()
        widest = max([widest, *((one[key] - two[key]).abs().max().item() for key in one)])
    return widest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, world: Path, pmmrec: Pmmrec) -> Path:
    """A folder that both hosts see, with `alone`, trained by one process."""
    folder = tmp_path_factory.mktemp("hosts")
    with working_in(folder):
        result = pmmrec("pretrain", "pretrain/tiny", *SETTINGS, *sources(world), "name=alone", "cache=c")
    assert result.code == 0, result.output
    return folder


@pytest.fixture(scope="module")
def ddp(net: TwoHosts, home: Path, world: Path) -> Job:
    """A run of two hosts that nobody disturbed."""
    job = Job(net, home, "ddp", "two_cpu", (*SETTINGS, *sources(world), "train.state.every_steps=1"))
    job.finish()
    return job


def test_two_hosts_train_what_one_process_would(ddp: Job) -> None:
    two, one = _steps(ddp.home, "ddp"), _steps(ddp.home, "alone")
    assert [step["users"] for step in two] == [step["users"] for step in one]
    assert [step["loss"] for step in two] == pytest.approx([step["loss"] for step in one], rel=1e-6)  # by 1.3e-7
    assert _widest(ddp.home, "ddp", "alone") < 1e-6  # float32, weights near 1; measured 1.2e-7


def test_what_the_main_process_refuses_for_all_is_said_on_both_hosts(ddp: Job) -> None:
    foreign = ddp.home / "runs" / "foreign" / "notes.txt"
    foreign.parent.mkdir()
    foreign.write_text("of another program", encoding="utf-8")
    job = Job(ddp.net, ddp.home, "foreign", ddp.launch, ddp.settings)
    assert job.wait(job.start()) == [2, 2], "\n".join(job.said)
    for said in job.said:
        assert said.count("error: runs/foreign: is not a resumable run") == 1, said


def test_a_host_cut_off_ends_both_and_the_same_command_goes_on_to_the_same_bits(ddp: Job) -> None:
    job = Job(ddp.net, ddp.home, "cut", ddp.launch, ddp.settings)
    _cut_after(job, 5)
    job.finish()
    assert "goes on after step " in job.said[0]
    assert _events(ddp.home, "cut") == _events(ddp.home, "ddp")
    assert _weights(ddp.home, "cut") == _weights(ddp.home, "ddp")


@pytest.fixture(scope="module")
def zero2(net: TwoHosts, home: Path, world: Path) -> Job:
    """The same under ZeRO-2, on the CPU."""
    if find_spec("deepspeed") is None:
        pytest.skip("DeepSpeed is not installed (the extra deepspeed)")
    launch = home / "zero2.yaml"
    launch.write_text(shipped_launch_files()["zero2"].read_text(encoding="utf-8") + "use_cpu: true\n", encoding="utf-8")
    job = Job(net, home, "zero2", str(launch), (*SETTINGS, *sources(world), "train.state.every_steps=1"))
    job.finish()
    return job


def test_two_hosts_under_zero_2_train_what_one_process_would(zero2: Job) -> None:
    two, one = _steps(zero2.home, "zero2"), _steps(zero2.home, "alone")
    assert [step["users"] for step in two] == [step["users"] for step in one]
    assert [step["loss"] for step in two] == pytest.approx([step["loss"] for step in one], rel=1e-6)  # by 1.3e-7
    assert _widest(zero2.home, "zero2", "alone") < 1e-6  # float32, weights near 1; measured 1.2e-7


def test_a_host_cut_off_under_zero_2_ends_both_and_the_same_command_goes_on(zero2: Job) -> None:
    job = Job(zero2.net, zero2.home, "zero2-cut", zero2.launch, zero2.settings)
    _cut_after(job, 5)
    job.finish()
    assert "goes on after step " in job.said[0]
    assert _events(zero2.home, "zero2-cut") == _events(zero2.home, "zero2")
    assert _weights(zero2.home, "zero2-cut") == _weights(zero2.home, "zero2")
