"""DAP over distinct items equals eq. 5 over slots, in values and gradients."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F
from views import hidden_of, rows_of, states_of_rows, with_items, with_masked, with_states, with_windows

from pmmrec.context import BuildContext
from pmmrec.contracts import Views, Windows
from pmmrec.objectives.next_item import NextItem, NextItemConfig
from pmmrec.requests import Masked
from pmmrec.testing.twins.next_item import next_item_by_loops

ATOL = 1e-12  # float64; measured at most 2e-14 over 100 seeds

CASES = {
    "windows_of_two": [[0, 1], [2, 3], [1, 4]],
    "an_item_twice_in_a_window": [[0, 1, 1], [2, 3, 2]],
    "an_item_at_all_users": [[0, 1], [2, 1], [3, 1]],
    "the_next_item_in_another_window": [[0, 1, 2], [3, 2, 2]],
    "padding": [[5], [0, 1], [2, 3, 4, 0]],
    "an_empty_window": [[], [0, 1, 2], [3, 4, 5]],
    "a_user_who_saw_everything": [[0, 1, 2], [1, 2]],
    "one_user": [[0, 1, 2]],
}


def settings() -> list[dict[str, Any]]:
    return [
        {"negatives": negatives, "logq": logq, "temperature": temperature}
        for negatives in ("unseen", "other_users")
        for logq, temperature in (("none", 1.0), ("all_columns", "sqrt_width"), ("negatives_only", 0.7))
    ]


@pytest.mark.parametrize("choice", settings(), ids=lambda choice: "-".join(str(value) for value in choice.values()))
def test_sum_over_items_equals_sum_over_slots(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], choice: dict[str, Any]
) -> None:
    config = NextItemConfig(**choice)
    num_counted = 0
    for seed in range(8):
        batch = tiny_batch(seed=seed)
        objective = NextItem(config, BuildContext(5))
        expected = next_item_by_loops(objective, batch.views)
        assert_twins(objective(batch.views), expected, batch, ATOL)
        num_counted += expected[1]
    assert num_counted > 10


@pytest.mark.parametrize("targets", ["last", "masked"])
@pytest.mark.parametrize("negatives", ["unseen", "other_users"])
def test_other_targets_equal_their_loops(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], negatives: Any, targets: Any
) -> None:
    config = NextItemConfig(negatives=negatives, targets=targets, logq="all_columns")
    num_counted = 0
    for seed in range(8):
        batch = tiny_batch(seed=seed)
        batch = dataclasses.replace(batch, views=with_masked(batch.views, Masked(), seed))
        objective = NextItem(config, BuildContext(5))
        expected = next_item_by_loops(objective, batch.views)
        masked = {"masked": batch.views.states[Masked()].hidden_BLD}
        assert_twins(objective(batch.views), expected, batch, ATOL, leaves=masked)
        num_counted += expected[1]
    assert num_counted > 10


@pytest.mark.parametrize("negatives", ["unseen", "other_users"])
def test_items_with_nothing_to_read_are_neither_targets_nor_negatives(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], negatives: Any
) -> None:
    config, left_out = NextItemConfig(negatives=negatives, logq="all_columns"), 0
    for seed in range(8):
        batch = tiny_batch(seed=seed, no_text=(0, 1, 2), no_image=(1, 2, 3))
        objective = NextItem(config, BuildContext(5))
        expected = next_item_by_loops(objective, batch.views)
        assert_twins(objective(batch.views), expected, batch, ATOL)
        left_out += int(batch.views.windows.has_next_BL.sum()) - expected[1]
    assert left_out > 5


@pytest.mark.parametrize("negatives", ["unseen", "other_users"])
@pytest.mark.parametrize("rows", CASES.values(), ids=CASES.keys())
def test_odd_batches_equal_their_loops(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], rows: list[list[int]], negatives: Any
) -> None:
    objective, batch = NextItem(NextItemConfig(negatives=negatives), BuildContext(5)), tiny_batch(rows)
    assert_twins(objective(batch.views), next_item_by_loops(objective, batch.views), batch, ATOL)


@pytest.mark.parametrize("rows", [[[0, 1, 2]], [[0], [1], [2]], [[0, 1, 2], [2, 1, 0]]])
def test_nothing_to_count_gives_zero_with_a_gradient_of_zero(
    tiny_batch: Callable[..., Any], rows: list[list[int]]
) -> None:
    views = tiny_batch(rows, num_positions=3).views
    term = NextItem(NextItemConfig(), BuildContext(5))(views)
    term.mean.backward()
    assert (term.sum.item(), term.count.item()) == (0, 0)
    assert hidden_of(views).grad is not None
    assert not hidden_of(views).grad.any()
    assert not views.items.fused_UD.grad.any()


def test_the_next_item_weighs_one_however_often_it_stands_in_the_batch(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch([[0, 1, 1, 1], [2, 3]]).views
    state, items = hidden_of(views)[0, 2], views.items.fused_UD
    only_last = with_windows(views, Windows(views.windows.item_index_BS, torch.tensor(
        [[False, False, True, True], [False, False, True, True]]
    )))  # fmt: skip
    own, others = items[1] @ state, torch.stack([items[2] @ state, items[3] @ state])
    first = torch.cat((own[None], others)).logsumexp(0) - own
    state = hidden_of(views)[1, 2]
    own, other = items[3] @ state, items[1] @ state
    second = torch.stack((own, other, other)).logsumexp(0) - own
    torch.testing.assert_close(
        NextItem(NextItemConfig(), BuildContext(5))(only_last).sum, first + second, rtol=0, atol=1e-12
    )


def test_equal_items_of_two_domains_are_two_items(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch([[2, 0], [3, 1]]).views  # 0 and 1: the same row of two domains, with the same vector
    fused_UD = views.items.fused_UD.detach().clone()
    fused_UD[1] = fused_UD[0]
    views = with_items(views, dataclasses.replace(views.items, fused_UD=fused_UD))
    scores = hidden_of(views)[0, 0] @ fused_UD.T
    expected = torch.stack((scores[0], scores[1], scores[3])).logsumexp(0) - scores[0]
    scores = hidden_of(views)[1, 0] @ fused_UD.T
    expected = expected + torch.stack((scores[1], scores[0], scores[2])).logsumexp(0) - scores[1]
    torch.testing.assert_close(NextItem(NextItemConfig(), BuildContext(5))(views).sum, expected, rtol=0, atol=1e-12)


def test_items_that_only_replaced_others_are_no_negatives_even_with_log_q_of_minus_infinity(
    tiny_batch: Callable[..., Any],
) -> None:
    views = tiny_batch([[0, 1], [2, 3]]).views
    log_q_U = views.log_q_U.clone()
    log_q_U[4:] = -math.inf
    objective = NextItem(NextItemConfig(logq="all_columns"), BuildContext(5))
    actual = objective(dataclasses.replace(views, log_q_U=log_q_U)).sum
    torch.testing.assert_close(actual, objective(views).sum, rtol=0, atol=0)


def test_a_target_that_the_sampler_never_shows_costs_nothing(tiny_batch: Callable[..., Any]) -> None:
    batch = tiny_batch([[0, 1], [2, 3]], num_items=4)
    views = dataclasses.replace(batch.views, log_q_U=torch.tensor([-1.0, -math.inf, -1.0, -2.0], dtype=torch.float64))
    objective = NextItem(NextItemConfig(logq="all_columns"), BuildContext(5))
    alone = dataclasses.replace(
        views,
        windows=rows_of(views.windows, slice(0, 1)),
        states=states_of_rows(views, slice(0, 1)),
        num_slots_U=torch.ones(4),
    )
    term = objective(alone)
    assert (term.sum.item(), term.count.item()) == (0.0, 1.0)
    gradients = torch.autograd.grad(term.sum, [hidden_of(alone), views.items.fused_UD])
    assert not any(gradient.any() for gradient in gradients)


def test_order_of_users_changes_nothing(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(CASES["padding"]).views
    order = torch.tensor([2, 0, 1])
    moved = dataclasses.replace(views, windows=rows_of(views.windows, order), states=states_of_rows(views, order))
    objective = NextItem(NextItemConfig(), BuildContext(5))
    torch.testing.assert_close(objective(moved).sum, objective(views).sum, rtol=0, atol=1e-13)


def test_accuracy_counts_next_items_strictly_above_every_negative(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch([[0, 1], [2, 3], [4, 5]], num_items=6).views
    hidden_BLD = torch.eye(5, dtype=torch.float64)[:3, None]
    fused_UD = torch.zeros(6, 5, dtype=torch.float64)
    fused_UD[1, 0] = 1.0  # above its negatives
    fused_UD[3, 1], fused_UD[0, 1] = 1.0, 1.0  # a tie is no win
    fused_UD[5, 2], fused_UD[4, 2] = 1.0, 9.0  # item 4 stands in the user's own window
    views = with_states(with_items(views, dataclasses.replace(views.items, fused_UD=fused_UD)), hidden_BLD)
    assert NextItem(NextItemConfig(), BuildContext(5))(views).metrics["accuracy"].tolist() == [2, 3]


def test_chance_is_the_loss_of_a_model_that_scores_all_items_alike(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(CASES["padding"]).views
    views = with_states(views, torch.zeros_like(hidden_of(views)))
    term = NextItem(NextItemConfig(), BuildContext(5))(views)
    torch.testing.assert_close(term.metrics["chance"], torch.stack((term.sum, term.count)), rtol=0, atol=1e-13)


def layer_normed_views(tiny_batch: Callable[..., Any], num_items: int) -> Views:
    rows = [list(range(start, start + 10)) for start in range(0, num_items, 10)]
    views: Views = tiny_batch(rows, num_items=num_items, width=768, dtype=torch.float32).views
    hidden_BLD = F.layer_norm(hidden_of(views), (768,))
    items = dataclasses.replace(views.items, fused_UD=F.layer_norm(views.items.fused_UD, (768,)))
    return with_states(with_items(views, items), hidden_BLD)


def test_sqrt_width_starts_near_the_log_of_the_number_of_columns_and_the_literal_far_above(
    tiny_batch: Callable[..., Any],
) -> None:
    views = layer_normed_views(tiny_batch, 1300)
    scaled = NextItem(NextItemConfig(temperature="sqrt_width"), BuildContext(768))(views)
    literal = NextItem(NextItemConfig(), BuildContext(768))(views)
    chance, count = scaled.metrics["chance"].tolist()
    assert chance / count == pytest.approx(math.log(1 + 1290), abs=1e-3)  # 7.2
    assert 7.2 < scaled.mean.item() < 8.2  # the scores' variance of 1 adds half a nat
    assert 80 < literal.mean.item() < 100


def test_loss_and_gradients_are_finite_at_width_768_and_temperature_one(tiny_batch: Callable[..., Any]) -> None:
    views = layer_normed_views(tiny_batch, 200)
    views = with_states(views, views.items.fused_UD[views.windows.item_index_BS[:, 1:]])  # s = 768
    term = NextItem(NextItemConfig(), BuildContext(768))(views)
    found = torch.autograd.grad(term.sum, [views.items.fused_UD, hidden_of(views)])
    assert term.sum.isfinite()
    assert all(gradient.isfinite().all() for gradient in found)


def test_half_precision_inputs_give_float32_terms_inside_autocast(tiny_batch: Callable[..., Any]) -> None:
    views = tiny_batch(CASES["padding"], dtype=torch.bfloat16).views
    objective = NextItem(NextItemConfig(logq="all_columns"), BuildContext(5))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        term = objective(views)
    items = dataclasses.replace(views.items, fused_UD=views.items.fused_UD.double())
    exact = with_states(with_items(views, items), hidden_of(views).double())
    exact = dataclasses.replace(exact, log_q_U=views.log_q_U.double())
    assert term.sum.dtype == term.count.dtype == torch.float32
    # float32 against float64 of the same numbers; measured 1e-6, a product in bfloat16 is 1e-2 away
    torch.testing.assert_close(term.sum.double(), objective(exact).sum, rtol=0, atol=1e-5)
