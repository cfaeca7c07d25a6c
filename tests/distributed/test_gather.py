"""Two processes whose negatives are gathered train what one process with all users trains."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import train_together
from safetensors.torch import load_file
from torch import Tensor

from pmmrec.train.processes import MachineConfig, Processes

ATOL = 1e-12  # float64, values near 1; measured at most 2e-15


@dataclass(frozen=True)
class Trained:
    """What `train_together` left of every kind, by one process and by two."""

    one: Path
    two: Path

    def tensors(self, kind: str, what: str) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        ours = [load_file(self.two / kind / f"{what}-{rank}.safetensors") for rank in (0, 1)]
        return load_file(self.one / kind / f"{what}-0.safetensors"), ours

    def events(self, kind: str, event: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        one, two = (_events(folder / kind, event) for folder in (self.one, self.two))
        return one, two


def _events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    home = tmp_path_factory.mktemp("together")
    train_together.make_home(home)
    processes = Processes(MachineConfig(device="cpu"))
    for kind in train_together.KINDS:
        train_together.train(home, home / "one" / kind, kind, processes)
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    words = (*launch, train_together.__file__, str(home), str(home / "two"))
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Trained(home / "one", home / "two")


def _widest(first: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert first.keys() == other.keys()
    return max((first[name].double() - other[name].double()).abs().max().item() for name in first)


@pytest.mark.parametrize("kind", train_together.KINDS)
def test_after_ten_steps_both_have_the_weights_of_one(trained: Trained, kind: str) -> None:
    one, two = trained.tensors(kind, "weights")
    assert all(_widest(one, weights) < ATOL for weights in two)
    assert len(trained.events(kind, "train")[0]) > 10


@pytest.mark.parametrize("kind", train_together.KINDS)
def test_the_gradients_of_the_first_step_are_those_of_one(trained: Trained, kind: str) -> None:
    one, two = trained.tensors(kind, "gradients")
    assert all(_widest(one, gradients) < ATOL for gradients in two)
    learns = [name for name, gradient in one.items() if gradient.abs().max() > 1e-6]
    assert {name.split(".")[0] for name in learns} == {"recommender", "objectives"}


@pytest.mark.parametrize("kind", train_together.KINDS)
@pytest.mark.parametrize("event", ["train", "gradient_norm"])
def test_every_figure_of_every_step_is_that_of_one(trained: Trained, kind: str, event: str) -> None:
    one, two = trained.events(kind, event)
    timed = {"time_s", "users_per_s"}
    assert len(one) == len(two)
    for first, other in zip(one, two, strict=True):
        assert first.keys() == other.keys()
        for name in first.keys() - timed - {"event"}:
            assert other[name] == pytest.approx(first[name], rel=2e-6, abs=1e-6), name  # logged in float32


def test_no_item_is_encoded_twice(trained: Trained) -> None:
    one, two = trained.events("paper", "train")
    assert [event["items_encoded"] for event in two] == [event["items_encoded"] for event in one]


def test_without_the_gather_something_else_is_trained(trained: Trained) -> None:
    one, _ = trained.tensors("paper", "weights")
    assert _widest(one, load_file(trained.two / "apart" / "weights-0.safetensors")) > 1e-3
    (first, *_), (other, *_) = trained.events("paper", "train")[0], _events(trained.two / "apart", "train")
    assert other["dap/chance"] < first["dap/chance"]
    assert other["users"] == first["users"]
