"""What a checkpoint gave is drawn back to what it was; what is fresh is not."""

from __future__ import annotations

import pytest
import torch

from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.train.optim import OptimizerConfig, build_optimizer
from pmmrec.train.toward_start import TowardStart

RATES = {"learning_rate": 0.1, "parts": {"item_table": {"learning_rate": 0.3}}}


def drawn_by_loops(weights: list[float], start: list[float], rate: float, strength: float) -> list[float]:
    """The update w <- w - rate strength (w - w0), number by number."""
    return [number - rate * strength * (number - first) for number, first in zip(weights, start, strict=True)]


def test_a_pull_is_that_of_a_loop_over_numbers(workshop) -> None:
    task = workshop().task.double()
    task.loaded = ("item_table", "user_encoder")
    pull = TowardStart(0.5, task, build_optimizer(task, OptimizerConfig.model_validate(RATES)), Spread.ONE)
    start = {name: weight.detach().clone() for name, weight in task.named_parameters()}
    for place, weight in enumerate(task.parameters()):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        weight.grad = torch.zeros_like(weight) if place else None  # the first did not learn in this step
    moved = {name: weight.detach().clone() for name, weight in task.named_parameters()}
    pull.pull(torch.tensor(True))
    assert all(torch.equal(weight, moved[name]) for name, weight in task.named_parameters())
    pull.pull(torch.tensor(False))
    first, *others = task.named_parameters()
    assert torch.equal(first[1], moved[first[0]])
    for name, weight in others:
        is_table, is_head = "item_encoder" in name, name.startswith("objectives")
        rate = 0.0 if is_head else 0.3 if is_table else 0.1
        expected = drawn_by_loops(moved[name].flatten().tolist(), start[name].flatten().tolist(), rate, 0.5)
        widened = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(weight.detach().flatten(), widened, rtol=0, atol=1e-12)  # measured 9e-16


def test_a_pull_as_strong_as_the_rate_allows_leaves_what_was_loaded_and_lets_the_rest_learn(workshop) -> None:
    shop = workshop()
    shop.task.loaded = ("user_encoder",)
    start = {name: weight.detach().clone() for name, weight in shop.task.named_parameters()}
    shop.loop(epochs=1, toward_start=100.0, optimizer={"learning_rate": 0.01}).fit()
    for name, weight in shop.task.named_parameters():
        is_loaded = "user_encoder" in name
        assert torch.allclose(weight, start[name], rtol=0, atol=1e-6) == is_loaded, name


def test_without_a_checkpoint_or_with_shards_it_is_refused(workshop) -> None:
    task = workshop().task
    optimizer = build_optimizer(task, OptimizerConfig())
    with pytest.raises(RecipeError, match=r"toward_start: has no effect, no part comes from a checkpoint"):
        TowardStart(0.1, task, optimizer, Spread.ONE)
    task.loaded = ("user_encoder",)
    with pytest.raises(RecipeError, match="and FSDP2 shards them"):
        TowardStart(0.1, task, optimizer, Spread.FSDP2)
