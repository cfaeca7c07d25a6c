"""The checks that propagations inherit."""
# Shapes: M users, N items, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from pmmrec.contracts import ItemVectors, Nodes
from pmmrec.propagations import propagations
from pmmrec.row_table import RowTable
from pmmrec.testing.checks import Inapplicable, assert_close, assert_equal, check
from pmmrec.testing.subjects import ALL_ITEMS, TOUCHED, Numbers, Subject, graph_of, nodes_of
from pmmrec.testing.twins import NO_TWIN, find_twin

USER_PLACE, ITEM_PLACE = (2, 0, 1), (1, 2, 0)  # where each user and each item stands after a change of order


def _passed_on(
    subject: Subject,
    nodes: Nodes,
    touched: Sequence[tuple[int, int]] = TOUCHED,
    items: Sequence[int] = ALL_ITEMS,
    users: Tensor | None = None,
) -> list[Tensor]:
    """Vectors of items and users that a part of this graph gives in evaluation mode; `items` as in `graph_of`.

    `users`: which of the example users stands at each place; their rows of tables of the part are moved with them.
    """
    context = dataclasses.replace(subject.context, graphs=[graph_of(touched, items)])
    torch.manual_seed(0)
    part = subject.entry.part_class(subject.config, context).double().eval()
    for table in part.modules():
        if isinstance(table, RowTable) and users is not None:
            table.vector.weight.data = table.vector.weight.data[users]
    return _tensors(part(nodes))


def _tensors(nodes: Nodes) -> list[Tensor]:
    if nodes.user_MD is None:
        raise AssertionError("gives no vectors of users, though it was given some")
    return [nodes.items.fused_UD, nodes.user_MD]


@check("twin", propagations)
def it_equals_its_twin(subject: Subject) -> Inapplicable:
    """Vectors and gradients are those of its twin, which goes from neighbour to neighbour; in evaluation mode."""
    twin = find_twin(subject.family, subject.config.type)
    if twin is None:
        return NO_TWIN
    part = subject.build().double().eval()
    nodes = nodes_of(Numbers(), part)
    found, wanted = _tensors(part(nodes)), _tensors(twin(part, nodes))
    leaves = [*_tensors(nodes), *nodes.items.streams_UD.values(), *part.parameters()]
    for actual, expected in zip(found, wanted, strict=True):
        assert_close(actual, expected, "against its twin")
    weights = [Numbers(seed=3).normal(*tensor.shape).detach() for tensor in found]

    def gradients(tensors: list[Tensor]) -> tuple[Tensor, ...]:
        sums = [(tensor * weight).sum() for tensor, weight in zip(tensors, weights, strict=True)]
        return torch.autograd.grad(torch.stack(sums).sum(), leaves)

    for one, other in zip(gradients(found), gradients(wanted), strict=True):
        assert_close(one, other, "against its twin: gradient")
    return None


@check("any order", propagations)
def the_order_of_users_and_items_does_not_matter(subject: Subject) -> Inapplicable:
    """Users and items in another order have the same vectors, in that order."""
    nodes = nodes_of(Numbers(), subject.build())
    users, items = torch.tensor(USER_PLACE), torch.tensor(ITEM_PLACE)
    item_ND, user_MD = _tensors(nodes)
    streams_ND = {name: x_ND[items.argsort()] for name, x_ND in nodes.items.streams_UD.items()}
    moved = Nodes(ItemVectors(item_ND[items.argsort()], streams_UD=streams_ND), user_MD[users.argsort()])
    touched = [(USER_PLACE[user], ITEM_PLACE[item]) for user, item in TOUCHED]
    item_ND, user_MD = _passed_on(subject, nodes)
    moved_item_ND, moved_user_MD = _passed_on(subject, moved, touched, items.argsort().tolist(), users.argsort())
    assert_close(moved_item_ND[items], item_ND, "items in another order")
    assert_close(moved_user_MD[users], user_MD, "users in another order")
    return None


@check("edges once", propagations)
def an_interaction_that_occurs_twice_counts_once(subject: Subject) -> Inapplicable:
    """Interactions in another order, or more than once, are the same graph."""
    nodes = nodes_of(Numbers(), subject.build())
    found = _passed_on(subject, nodes, [*TOUCHED[::-1], *TOUCHED])
    for actual, expected in zip(found, _passed_on(subject, nodes), strict=True):
        assert_close(actual, expected, "with every interaction twice")
    return None


@check("epoch", propagations)
def an_epoch_depends_on_seed_and_number_alone(subject: Subject) -> Inapplicable:
    """Epoch 3 is the same whether epochs 1 and 2 came before or not: a run that goes on draws what it would have."""
    nodes = nodes_of(Numbers(), subject.build())
    context = subject.context
    torch.manual_seed(0)
    part = subject.entry.part_class(subject.config, context).double().train()
    for epoch in (1, 2, 3):
        part.begin_epoch(epoch)
    torch.manual_seed(1)
    passed = _tensors(part(nodes))
    torch.manual_seed(1)
    alone = subject.entry.part_class(subject.config, context).double().train()
    alone.load_state_dict(part.state_dict())
    alone.begin_epoch(3)
    torch.manual_seed(1)
    assert_equal(_tensors(alone(nodes)), passed, "epoch 3 alone, and after others")
    return None
