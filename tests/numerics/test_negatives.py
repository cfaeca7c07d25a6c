"""Negatives are counted in slots, as the sum over a batch's places would."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.contracts import Windows
from pmmrec.objectives.negatives import Columns, NegativeRule

RULES: list[NegativeRule] = ["unseen", "other_users"]


def weights_by_loops(windows: Windows, num_items: int, rule: NegativeRule) -> Tensor:
    """Weights of items as negatives of user b, slot by slot, as the rule says."""
    index, is_valid = windows.item_index_BS.tolist(), windows.is_valid_BS.tolist()
    num_users, num_positions = windows.item_index_BS.shape
    weight_BU = torch.zeros(num_users, num_items, dtype=torch.float64)
    for b in range(num_users):
        own_items = {index[b][s] for s in range(num_positions) if is_valid[b][s]}
        for other in range(num_users):
            for s in range(num_positions):
                item = index[other][s]
                if not is_valid[other][s] or (rule == "unseen" and item in own_items):
                    continue
                if rule == "other_users" and other == b:
                    continue
                weight_BU[b, item] += 1
    return weight_BU


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(10))
def test_weights_are_the_slots_that_loops_find(tiny_batch: Callable[..., Any], rule: NegativeRule, seed: int) -> None:
    windows = tiny_batch(seed=seed).views.windows
    negatives = Columns.of(windows, 7).negatives(rule, torch.float64)
    assert torch.equal(negatives.weight_BU, weights_by_loops(windows, 7, rule))


def test_items_of_the_same_user_are_never_negatives(tiny_batch: Callable[..., Any]) -> None:
    windows = tiny_batch([[0, 1, 2], [2, 3, 3]]).views.windows
    negatives = Columns.of(windows, 7).negatives("unseen", torch.float32)
    assert negatives.weight_BU.tolist() == [[0, 0, 0, 2, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]


def test_slots_of_other_users_count_even_when_the_user_knows_the_item(tiny_batch: Callable[..., Any]) -> None:
    windows = tiny_batch([[0, 1, 2], [2, 3, 3]]).views.windows
    negatives = Columns.of(windows, 7).negatives("other_users", torch.float32)
    assert negatives.weight_BU.tolist() == [[0, 0, 1, 2, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0]]


def test_log_weights_of_items_that_are_no_negatives_are_minus_infinity(tiny_batch: Callable[..., Any]) -> None:
    negatives = Columns.of(tiny_batch([[0, 1], [1, 2]]).views.windows, 4).negatives("unseen", torch.float32)
    assert negatives.log_weight_BU.tolist() == [[-torch.inf] * 2 + [0, -torch.inf], [0] + [-torch.inf] * 3]


def test_padding_is_no_slot_of_item_zero(tiny_batch: Callable[..., Any]) -> None:
    windows = tiny_batch([[1], [2, 3, 4]]).views.windows
    assert Columns.of(windows, 7).num_slots_U.tolist() == [0, 1, 1, 1, 1, 0, 0]


def test_a_user_alone_has_no_negatives(tiny_batch: Callable[..., Any]) -> None:
    columns = Columns.of(tiny_batch([[0, 1, 2]]).views.windows, 7)
    assert not any(columns.negatives(rule, torch.float32).has_any_B.item() for rule in RULES)


@pytest.mark.parametrize("rule", RULES)
def test_columns_of_two_processes_weigh_as_much_as_those_of_one(
    tiny_batch: Callable[..., Any], rule: NegativeRule
) -> None:
    rows = [[0, 1, 2], [2, 3, 3], [3, 4, 0], [5, 5, 1]]
    whole = Columns.of(tiny_batch(rows).views.windows, 6)
    halves = [Columns.of(tiny_batch(half).views.windows, 6, whole.num_slots_U) for half in (rows[:2], rows[2:])]
    weights = [half.negatives(rule, torch.float64).weight_BU for half in halves]
    assert torch.equal(torch.cat(weights), whole.negatives(rule, torch.float64).weight_BU)
