"""Several processes agree on when to stop, and go on as if they never had, also when they are more or fewer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import train_stopped
from safetensors.torch import load_file
from torch import Tensor

TIMES = ("time_s", "seconds", "users_per_s", "peak_memory_bytes")


def attempt(out: Path, world: Path, processes: int, *, signal_at: int | None = None, signal_rank: int = 0) -> None:
    """Train until the end, or until all processes have ended on behalf of one that got a signal."""
    out.mkdir(exist_ok=True)
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", processes, train_stopped.__file__]
    asked = [] if signal_at is None else ["--signal-at", signal_at, "--signal-rank", signal_rank]
    words = [str(word) for word in (sys.executable, "-m", *launch, world / "boutique", out, *asked)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    said = done.stdout + done.stderr
    if signal_at is None:
        assert done.returncode == 0, said
        return
    told = [(out / f"told-{rank}.txt").read_text() for rank in range(processes)]
    heard = ["SIGUSR1" if rank == signal_rank else "a signal to another process" for rank in range(processes)]
    assert [text.split(": ", 1)[1].split(";")[0] for text in told] == [f"ended by {who}" for who in heard]
    assert len({text.split(":")[0] for text in told}) == 1  # at the same step
    assert "exitcode  : 75" in said


def weights(out: Path, rank: int = 0) -> dict[str, Tensor]:
    return load_file(out / f"{rank}.safetensors")


def events(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: figure for name, figure in event.items() if name not in TIMES} for event in lines]


def widest(first: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert first.keys() == other.keys()
    return max((first[name] - other[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """Two processes that nobody stopped."""
    out = tmp_path_factory.mktemp("undisturbed")
    attempt(out, world, 2)
    return out


def test_two_processes_stop_for_a_signal_to_one_and_go_on_to_the_same_bits(
    tmp_path: Path, world: Path, undisturbed: Path
) -> None:
    attempt(tmp_path, world, 2, signal_at=7, signal_rank=1)
    attempt(tmp_path, world, 2)
    for rank in (0, 1):
        expected = weights(undisturbed, rank)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in weights(tmp_path, rank).items())
    assert events(tmp_path) == events(undisturbed)


def test_two_processes_then_one_then_four_train_what_two_would(tmp_path: Path, world: Path, undisturbed: Path) -> None:
    attempt(tmp_path, world, 2, signal_at=2)
    attempt(tmp_path, world, 1, signal_at=3)
    attempt(tmp_path, world, 4)
    for rank in range(4):
        assert widest(weights(tmp_path, rank), weights(undisturbed)) < 1e-12  # float64, weights near 1; measured 0
    steps = [event["step"] for event in events(tmp_path) if event["event"] == "train"]
    assert steps == list(range(1, 11))
    assert [event["users"] for event in events(tmp_path) if event["event"] == "train"] == [8] * 10
