"""One process or several: how they are joined, seeded, and exchange values."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from pmmrec.errors import MachineError
from pmmrec.train.processes import MachineConfig, Processes


@pytest.fixture
def processes() -> Processes:
    return Processes(MachineConfig(device="cpu"))


def test_a_process_alone_is_the_main_one(processes: Processes) -> None:
    assert (processes.rank, processes.world, processes.is_main) == (0, 1, True)
    assert processes.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "PMMREC_PROCESSES"])
def test_malformed_launcher_variables_are_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "x")
    with pytest.raises(MachineError, match=rf"{name} is 'x' and must be a number"):
        Processes(MachineConfig(device="cpu"))


def test_incomplete_launcher_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(MachineError, match="LOCAL_RANK is set and RANK, WORLD_SIZE, MASTER_PORT, MASTER_ADDR not"):
        Processes(MachineConfig(device="cpu"))
    monkeypatch.setenv("LOCAL_RANK", "-1")
    assert Processes(MachineConfig(device="cpu")).world == 1


@pytest.mark.usefixtures("processes")
def test_processes_that_were_started_but_not_joined_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        MachineError, match="2 processes were started but Accelerate joined 1; start them with torchrun"
    ):
        Processes(MachineConfig(device="cpu"))


@pytest.mark.usefixtures("processes")
def test_fewer_processes_than_were_asked_for_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMMREC_PROCESSES", "2")
    with pytest.raises(
        MachineError, match=r"2 processes were asked for and 1 started; .* say MULTI_GPU, also with use_cpu"
    ):
        Processes(MachineConfig(device="cpu"))


@pytest.mark.usefixtures("processes")
def test_sharding_over_one_process_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(MachineError, match="FSDP was asked for, and this process was started alone"):
        Processes(MachineConfig(device="cpu"))


def test_the_same_seed_gives_the_same_numbers_in_every_generator(processes: Processes) -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(())), float(np.random.random()), random.random()  # noqa: NPY002 - the global one is meant

    processes.seed(3, same=True)
    first = draw()
    processes.seed(3, same=True)
    assert draw() == first
    processes.seed(4, same=True)
    assert all(one != other for one, other in zip(draw(), first, strict=True))


def test_collectives_of_a_single_process_return_its_own_value(processes: Processes) -> None:
    value = {"a": [1, 2]}
    assert processes.from_main(value) == value
    assert processes.gathered(["x", "y"]) == ["x", "y"]
    processes.wait()
