"""A loss or a gradient that is no number stops the run before it reaches a weight, and says where it came from."""

from __future__ import annotations

import math

import pytest
import torch

from pmmrec.contracts import Term, Views
from pmmrec.errors import DivergenceError
from pmmrec.objectives import Objective
from pmmrec.train.loop import Loop
from pmmrec.train.nonfinite import stop_if_weights_nonfinite
from pmmrec.train.processes import joined

ROW = 5


def _copy(shop) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in shop.task.state_dict().items()}


def _item(shop) -> str:
    domain = shop.sources.domains[0]
    return f"{domain.name}/{domain.item_ids[ROW].as_py()}"


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_item_is_named_and_no_weight_moves(workshop, poison: float) -> None:
    shop = workshop()
    with torch.no_grad():
        shop.task.recommender.item_encoder.item_table.vector.weight[ROW] = poison
    before = _copy(shop)
    told = f"^step 1: loss of dap, nid, rcl is not finite; first seen in vectors of items {_item(shop)}; no update"
    with pytest.raises(DivergenceError, match=told):
        shop.loop(batch_users=40).fit()
    torch.testing.assert_close(_copy(shop), before, rtol=0, atol=0, equal_nan=True)


class _PoisonAfter:
    """Breaks one item once an epoch is over."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch

    def epoch_ended(self, loop: Loop, epoch: int) -> None:
        if epoch == self._epoch:
            with torch.no_grad():
                loop.task.recommender.item_encoder.item_table.vector.weight[ROW] = math.nan


def test_the_step_that_broke_is_named(workshop) -> None:
    shop = workshop()
    with pytest.raises(DivergenceError, match=rf"^step 2: .* of items {_item(shop)};"):
        shop.loop(batch_users=40, epochs=3, callbacks=[_PoisonAfter(1)]).fit()
    assert [event["step"] for event in shop.events("train")] == [1]


def test_users_are_named_where_every_item_is_sound(workshop) -> None:
    shop = workshop()
    with torch.no_grad():
        next(iter(shop.task.recommender.user_encoder.parameters())).fill_(math.nan)
    with pytest.raises(DivergenceError, match=r"first seen in states of users boutique/\S+, .* and 35 more;"):
        shop.loop(batch_users=40).fit()


class _Root(Objective):
    """0 in value, NaN in gradient: the root of a product with 0."""

    def forward(self, views: Views) -> Term:
        return Term((views.hidden_BLD * 0).sum().sqrt(), torch.ones(()))


def test_a_broken_gradient_of_a_sound_loss_makes_no_update(workshop) -> None:
    shop = workshop()
    shop.task.objectives["root"] = _Root()
    shop.task.weights["root"] = 1.0
    before = _copy(shop)
    with pytest.raises(DivergenceError, match="step 1: a gradient is not finite, every loss is; no update was made"):
        shop.loop(batch_users=40, clip_norm=None).fit()
    torch.testing.assert_close(_copy(shop), before, rtol=0, atol=0)


def test_an_update_that_leaves_the_finite_numbers_is_told_with_the_weight(workshop) -> None:
    """The last step of an epoch has no next loss that would notice; ranking must not be the first to meet it."""
    task = workshop().task
    stop_if_weights_nonfinite(task, step=7)
    with torch.no_grad():
        task.recommender.item_encoder.item_table.vector.weight[ROW] = math.inf
    told = r"^step 7: its update left recommender\.item_encoder\.item_table\.vector\.weight not finite"
    with pytest.raises(DivergenceError, match=told):
        stop_if_weights_nonfinite(task, step=7)


def test_divergence_is_no_fault_of_recipe_data_or_machine() -> None:
    assert DivergenceError.exit_code == 1


def test_many_names_are_shown_as_five_and_a_number() -> None:
    assert joined(["a", "b"]) == "a, b"
    assert joined(list("abcdefg")) == "a, b, c, d, e and 2 more"
