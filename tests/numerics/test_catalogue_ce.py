"""The full softmax, in one piece or in chunks, equals its loops in values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from views import hidden_of, with_items, with_masked

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors
from pmmrec.objectives.catalogue_ce import CatalogueCE, CatalogueCEConfig
from pmmrec.requests import Masked
from pmmrec.testing.twins.catalogue_ce import catalogue_ce_by_loops

ATOL = 1e-12  # float64; measured at most 8e-15 over 100 seeds


@pytest.mark.parametrize("scores_at_once", [1, 20, 1 << 25])
@pytest.mark.parametrize("temperature", [1.0, "sqrt_width", 0.5])
def test_the_sum_equals_its_loops_however_it_is_chunked(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], temperature: Any, scores_at_once: int
) -> None:
    config = CatalogueCEConfig(temperature=temperature, scores_at_once=scores_at_once)
    objective = CatalogueCE(config, BuildContext(5))
    num_counted = 0
    for seed in range(8):
        batch = tiny_batch(seed=seed)
        expected = catalogue_ce_by_loops(objective, batch.views)
        assert_twins(objective(batch.views), expected, batch, ATOL)
        num_counted += expected[1]
    assert num_counted > 10


@pytest.mark.parametrize("scores_at_once", [1, 1 << 25])
@pytest.mark.parametrize("targets", ["last", "masked"])
def test_other_targets_equal_their_loops(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], targets: Any, scores_at_once: int
) -> None:
    config = CatalogueCEConfig(temperature=1.0, targets=targets, scores_at_once=scores_at_once)
    objective = CatalogueCE(config, BuildContext(5))
    num_counted = 0
    for seed in range(8):
        batch = tiny_batch(seed=seed)
        batch = replace(batch, views=with_masked(batch.views, Masked(), seed))
        expected = catalogue_ce_by_loops(objective, batch.views)
        masked = {"masked": batch.views.states[Masked()].hidden_BLD}
        assert_twins(objective(batch.views), expected, batch, ATOL, leaves=masked)
        num_counted += expected[1]
    assert num_counted > 10


@pytest.mark.parametrize("scores_at_once", [1, 1 << 25])
def test_items_with_nothing_to_read_are_neither_candidates_nor_targets(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], scores_at_once: int
) -> None:
    left_out = 0
    for seed in range(8):
        batch = tiny_batch(seed=seed, no_text=(0, 1, 2), no_image=(1, 2, 3))
        objective = CatalogueCE(CatalogueCEConfig(temperature=1.0, scores_at_once=scores_at_once), BuildContext(5))
        expected = catalogue_ce_by_loops(objective, batch.views)
        assert_twins(objective(batch.views), expected, batch, ATOL)
        left_out += int(batch.views.windows.has_next_BL.sum()) - expected[1]
    assert left_out > 5


def test_items_known_by_id_are_all_candidates(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(seed=1).views
    by_id = with_items(views, ItemVectors(views.items.fused_UD))
    objective = CatalogueCE(CatalogueCEConfig(), BuildContext(5))
    assert objective(by_id).sum.item() == objective(views).sum.item()


def test_nobody_with_a_next_item_gives_nothing_and_a_gradient_of_zero(tiny_batch: Callable[..., Any]) -> None:
    batch = tiny_batch([[0], []], num_positions=3)
    term = CatalogueCE(CatalogueCEConfig(), BuildContext(5))(batch.views)
    term.sum.backward()
    assert (term.sum.item(), term.count.item()) == (0, 0)
    assert not batch.views.items.fused_UD.grad.any()


def test_metrics_say_chance_and_how_often_the_next_item_is_alone_at_the_top(tiny_batch: Callable[..., Any]) -> None:
    batch = tiny_batch(seed=3)
    views, config = batch.views, CatalogueCEConfig(scores_at_once=7)
    metrics = CatalogueCE(config, BuildContext(5))(views).metrics
    scores = hidden_of(views) @ views.items.fused_UD.T
    following = views.windows.item_index_BS[:, 1:]
    right = [
        int(scores[b, s].argmax()) == int(following[b, s]) for b, s in views.windows.has_next_BL.nonzero().tolist()
    ]
    assert metrics["accuracy"].tolist() == [sum(right), len(right)]
    chance = metrics["chance"][0] / metrics["chance"][1]
    assert chance.item() == pytest.approx(math.log(views.items.fused_UD.shape[0]), abs=1e-12)
