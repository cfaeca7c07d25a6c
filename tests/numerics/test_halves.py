"""Objectives over users shared out to processes add up to the objective over all users, in values and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from views import rows_of, states_of_rows

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.negatives import Columns

ATOL = 1e-12  # float64; measured at most 2e-14
ROWS = {
    "shared_items": [[0, 1, 2], [2, 3, 3], [3, 4, 0], [5, 5, 1], [1, 2]],
    "an_empty_window": [[], [0, 1, 2], [3, 4, 5], [1, 0]],
    "one_user_with_an_input": [[0], [1], [2, 3, 4]],
    "users_who_saw_everything": [[0, 1, 2], [1, 2], [2, 1, 0]],
}
TERMS = [
    {"type": "next_item"},
    {"type": "next_item", "negatives": "other_users", "logq": "all_columns", "temperature": "sqrt_width"},
    {"type": "alignment"},
    {"type": "alignment", "negatives": "other_users", "temperature": 0.1, "positives_in_denominator": True},
    {"type": "alignment", "next_item_positives": False, "intra_negatives": False},
    {"type": "noise_detection"},
    {"type": "robustness"},
    {"type": "robustness", "normalize": True, "temperature": 0.1, "symmetric": True},
    {"type": "catalogue_ce"},
]


class AllRows:
    """`Peers` in one process: the rows of every share are collected first, then handed out together."""

    def __init__(self, first: int, given: list[Tensor]) -> None:
        self.first, self._given = first, given
        self.is_collecting = True

    def of_all(self, rows_BD: Tensor) -> Tensor:
        if self.is_collecting:
            self._given.append(rows_BD)
        return torch.cat(self._given)


def shares_of(views: Views, sizes: list[int]) -> list[Views]:
    """The views of each process: its users' rows, the items and slots of all."""
    num_slots_U = Columns.of(views.windows, len(views.items.fused_UD)).num_slots_U
    given: list[Tensor] = []
    shares, first = [], 0
    for size in sizes:
        own = slice(first, first + size)
        share = dataclasses.replace(
            views,
            windows=rows_of(views.windows, own),
            states=states_of_rows(views, own),
            num_slots_U=num_slots_U,
            peers=AllRows(first, given),
        )
        shares.append(share)
        first += size
    return shares


def together(objective: Objective, shares: list[Views]) -> Term:
    """Sums, counts and metrics of all shares, added up."""
    for share in shares:
        objective(share)
    for share in shares:
        share.peers.is_collecting = False
    terms = [objective(share) for share in shares]
    metrics = {name: sum(term.metrics[name] for term in terms) for name in terms[0].metrics}
    return Term(sum(term.sum for term in terms), sum(term.count for term in terms), metrics)


@pytest.mark.parametrize("tree", TERMS, ids=str)
@pytest.mark.parametrize("name", ROWS)
def test_shares_add_up_to_the_whole(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], name: str, tree: dict[str, Any]
) -> None:
    config = objectives.config(tree)
    torch.manual_seed(0)
    objective = objectives.part_class(config)(config, BuildContext(5)).double()
    batch = tiny_batch(ROWS[name], num_positions=4, no_text=[3], no_image=[4])
    whole = objective(batch.views)
    num_users = len(ROWS[name])
    for sizes in ([num_users - 1, 1], [1] * num_users):
        term = together(objective, shares_of(batch.views, sizes))
        assert_twins(term, (whole.sum, whole.count.item()), batch, ATOL, head=objective)
        for metric, value in whole.metrics.items():
            torch.testing.assert_close(term.metrics[metric], value, rtol=0, atol=ATOL)


def test_a_share_alone_is_something_else(tiny_batch: Callable[..., Any]) -> None:
    config = objectives.config({"type": "robustness"})
    objective, batch = (
        objectives.part_class(config)(config, BuildContext(5)),
        tiny_batch(ROWS["shared_items"], num_positions=4),
    )
    alone = [dataclasses.replace(share, num_slots_U=None, peers=None) for share in shares_of(batch.views, [3, 2])]
    whole, parts = objective(batch.views), [objective(share) for share in alone]
    assert sum(part.count for part in parts) == whole.count
    assert abs(sum(part.sum for part in parts) - whole.sum) > 0.1
