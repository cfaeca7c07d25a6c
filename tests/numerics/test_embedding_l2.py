"""The L2 term equals its loops in values and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from views import with_negatives

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Nodes, Views
from pmmrec.objectives import objectives
from pmmrec.testing.twins.embedding_l2 import l2_by_loops

ATOL = 1e-12  # float64


def with_nodes(views: Views, seed: int, *, has_users: bool) -> Views:
    """Other vectors before propagation, and users who are rows of a table, where they are known by id."""
    draw = torch.Generator().manual_seed(seed)
    items = torch.randn(views.items.fused_UD.shape, generator=draw, dtype=torch.float64).requires_grad_()
    users = torch.randn(9, 5, generator=draw, dtype=torch.float64).requires_grad_() if has_users else None
    index = torch.randint(0, 9, (len(views.windows.item_index_BS),), generator=draw)
    windows = dataclasses.replace(views.windows, user_index_B=index)
    nodes, passed = Nodes(ItemVectors(items), users), Nodes(views.items, None if users is None else 2 * users)
    return dataclasses.replace(views, windows=windows, unpropagated=nodes, propagated=passed)


@pytest.mark.parametrize(
    "settings", [{}, {"negatives": {"count": 3}, "targets": "last"}, {"negatives": None}, {"of": "propagated"}]
)
@pytest.mark.parametrize("has_users", [True, False])
def test_the_sum_equals_its_loops(
    tiny_batch: Callable[..., Any], assert_twins: Callable[..., None], settings: dict[str, Any], has_users: bool
) -> None:
    config = objectives.config({"type": "embedding_l2", **settings})
    objective = objectives.part_class(config)(config, BuildContext(5))
    num_counted = 0
    for seed in range(8):
        batch = tiny_batch(seed=seed)
        views = with_nodes(batch.views, seed, has_users=has_users)
        if config.negatives is not None:
            views = with_negatives(views, config.negatives, seed)
        leaves = {"items before": views.unpropagated.items.fused_UD} if config.of == "unpropagated" else {}
        if has_users:
            leaves["users before"] = views.unpropagated.user_MD
        expected = l2_by_loops(objective, views)
        assert_twins(objective(views), expected, dataclasses.replace(batch, views=views), ATOL, leaves=leaves)
        num_counted += expected[1]
    assert num_counted > 5
