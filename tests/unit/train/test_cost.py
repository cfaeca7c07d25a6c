"""The cost of a training: parameters, memory and time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pmmrec.train.cost import TrainingCost, peak_memory_bytes

CPU = torch.device("cpu")


def test_frozen_parameters_count_only_in_the_total() -> None:
    task = nn.ModuleDict({"frozen": nn.Linear(4, 5), "learning": nn.Linear(5, 2)})
    task["frozen"].requires_grad_(requires_grad=False)
    cost = TrainingCost.of(task)
    assert (cost.trainable_parameters, cost.total_parameters) == (12, 37)
    assert cost.words() == "learning: 12 of 37 parameters (32.43%)"


def test_epochs_are_averaged() -> None:
    cost = TrainingCost(1, 2)
    assert cost.seconds_per_epoch is None
    cost.add_epoch(1.0, CPU)
    cost.add_epoch(2.0, CPU)
    assert cost.seconds_per_epoch == 1.5
    assert cost.seconds == 3.0


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_memory_of_a_process_grows_with_what_it_holds() -> None:
    before = peak_memory_bytes(CPU)
    held = torch.ones(2**24)
    after = peak_memory_bytes(CPU)
    assert before is not None
    assert after is not None
    assert after >= held.nbytes
    assert after < 64 * held.nbytes


def test_the_sizes_of_a_task_add_up_to_the_sizes_that_its_training_logs(workshop: Callable[..., Any]) -> None:
    task = workshop().task
    task.recommender.parts["user_encoder"].requires_grad_(requires_grad=False)
    cost = TrainingCost.of(task)
    assert sum(size.all for size in task.sizes) == cost.total_parameters
    assert sum(size.trainable for size in task.sizes) == cost.trainable_parameters < cost.total_parameters
    assert {size.part: size.trainable for size in task.sizes}["user_encoder"] == 0


def test_a_run_logs_its_cost(workshop: Callable[..., Any]) -> None:
    shop = workshop()
    loop = shop.loop(epochs=2)
    loop.fit()
    (sizes,) = shop.events("parameters")
    assert sizes["trainable"] == sizes["total"] == sum(p.numel() for p in shop.task.parameters())
    epochs = shop.events("epoch")
    assert [event["epoch"] for event in epochs] == [1, 2]
    assert sum(event["seconds"] for event in epochs) == pytest.approx(loop.training_s)
    assert all(event["peak_memory_bytes"] > 0 for event in epochs)
