"""Two processes train every system what one does, with whole weights (DDP) or sharded ones (FSDP2)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import train_gathered
import train_systems
from safetensors.torch import load_file
from torch import Tensor
from train_systems import SYSTEMS
from worker_group import FSDP2, ON_CPU, run_group

from pmmrec.train.processes import MachineConfig, Processes

ATOL = 1e-12  # float64, values near 1; measured at most 3e-16
TIMES = ("time_s", "users_per_s", "event")
TIED = ("contrast/accuracy",)  # two users of a step have the same view, [7]: rounding decides which is nearest


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train_systems` left as one process, in `one`."""
    folder = tmp_path_factory.mktemp("systems")
    train_gathered.make_home(folder)
    processes = Processes(MachineConfig(device="cpu"))
    for name in SYSTEMS:
        train_systems.train(folder, folder / "one" / name, name, processes)
    return folder


@pytest.fixture(scope="module", params=["ddp", "fsdp2"])
def two(request: pytest.FixtureRequest, home: Path) -> Path:
    """What it left as two processes."""
    out = home / request.param
    spread = FSDP2 if request.param == "fsdp2" else ON_CPU
    run_group(2, train_systems.__file__, home, out, spread=spread).well()
    return out


@pytest.fixture(scope="module", params=["exact", "plain"])
def in_parts(request: pytest.FixtureRequest, home: Path) -> Path:
    """What it left as one process whose steps were done in parts."""
    out, processes = home / request.param, Processes(MachineConfig(device="cpu"))
    for name in SYSTEMS:
        train_systems.train(home, out / name, name, processes, accumulate={"mode": request.param, "parts": 2})
    return out


def widest(first: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert first.keys() == other.keys()
    return max((first[name].double() - other[name].double()).abs().max().item() for name in first)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize("system", [name for name, system in SYSTEMS.items() if not system.draws])
def test_gradients_weights_and_figures_are_those_of_one_process(home: Path, two: Path, system: str) -> None:
    one = home / "one" / system
    gradients = load_file(one / "gradients-0.safetensors")
    assert min(gradient.abs().max() for gradient in gradients.values()) > 0
    for what in ("gradients", "weights"):
        name = f"{what}-0.safetensors"
        assert widest(load_file(one / name), load_file(two / system / name)) < ATOL, what
    for event in ("train", "gradient_norm"):
        expected, found = events(one, event), events(two / system, event)
        assert len(found) == len(expected) > 5 * (event == "train")
        for first, other in zip(expected, found, strict=True):
            assert first.keys() == other.keys()
            for figure in first.keys() - {*TIMES, *TIED}:
                assert other[figure] == pytest.approx(first[figure], rel=2e-6, abs=1e-6), figure  # logged in float32


def test_a_permutation_that_learns_ends_as_one_assignment_in_all_processes(two: Path) -> None:
    weights = load_file(two / "vqrec, aligned" / "weights-0.safetensors")
    place_MV = weights["recommender.item_encoder.permutation.place_MV"]
    identity_MV = torch.arange(50).repeat(3, 1)
    assert torch.equal(place_MV.sort(dim=1).values, identity_MV)
    assert not torch.equal(place_MV, identity_MV)
    for other in two.glob("vqrec, aligned/weights-*.safetensors"):
        assert torch.equal(load_file(other)["recommender.item_encoder.permutation.place_MV"], place_MV)


PLAIN = [name for name, system in SYSTEMS.items() if not (system.compares_users or system.draws)]


@pytest.mark.parametrize("system", PLAIN)
def test_steps_in_parts_train_what_whole_ones_do(home: Path, in_parts: Path, system: str) -> None:
    """In `plain` parts too, which have their own negatives among users: these systems have none."""
    for what in ("gradients", "weights"):
        name = f"{what}-0.safetensors"
        assert widest(load_file(home / "one" / system / name), load_file(in_parts / system / name)) < ATOL, what
