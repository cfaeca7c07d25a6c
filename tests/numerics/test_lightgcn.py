"""LightGCN equals its loops over neighbours and the powers of a dense matrix, in values and gradients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from pmmrec.context import BuildContext, InteractionGraph
from pmmrec.contracts import ItemVectors, Nodes
from pmmrec.propagations.lightgcn import LightGCN, LightGCNConfig
from pmmrec.testing.twins.graphs import lightgcn_by_loops

ATOL = 1e-12  # float64
NUM_USERS, NUM_ITEMS, WIDTH = 5, 6, 3
Pairs = Sequence[tuple[int, int]]


def random_pairs(seed: int) -> Pairs:
    """Some of them twice; the last user and the last item have none."""
    draw = np.random.default_rng(seed)
    return [(int(draw.integers(0, NUM_USERS - 1)), int(draw.integers(0, NUM_ITEMS - 1))) for _ in range(9)]


def part_of(pairs: Pairs, **settings: float) -> LightGCN:
    users, items = np.array(pairs).T
    graph = InteractionGraph(NUM_USERS, NUM_ITEMS, lambda: (users, items))
    return LightGCN(LightGCNConfig(**settings), BuildContext(WIDTH, graphs=[graph], seed=4)).double()


def nodes_of(seed: int) -> Nodes:
    draw = torch.Generator().manual_seed(seed)
    items = torch.randn(NUM_ITEMS, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
    users = torch.randn(NUM_USERS, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()
    return Nodes(ItemVectors(items), users)


def by_a_dense_matrix(pairs: Pairs, nodes: Nodes, num_layers: int) -> Tensor:
    """Powers of the whole normalised matrix, `(V, D)`."""
    touched = torch.zeros(NUM_USERS, NUM_ITEMS, dtype=torch.float64)
    for user, item in pairs:
        touched[user, item] = 1
    zeros = touched.new_zeros(NUM_USERS, NUM_USERS), touched.new_zeros(NUM_ITEMS, NUM_ITEMS)
    whole = torch.cat((torch.cat((zeros[0], touched), dim=1), torch.cat((touched.T, zeros[1]), dim=1)))
    scale = whole.sum(dim=1).clamp(min=1).rsqrt()
    matrix, x = scale[:, None] * whole * scale, torch.cat((nodes.user_MD, nodes.items.fused_UD))
    return torch.stack([torch.linalg.matrix_power(matrix, k) @ x for k in range(num_layers + 1)]).mean(dim=0)


@pytest.mark.parametrize("num_layers", [1, 2, 4])
@pytest.mark.parametrize("seed", range(3))
def test_it_equals_its_loops_and_a_dense_matrix(num_layers: int, seed: int) -> None:
    pairs, nodes = random_pairs(seed), nodes_of(seed)
    part = part_of(pairs, num_layers=num_layers)
    passed = part(nodes)
    actual = torch.cat((passed.user_MD, passed.items.fused_UD))
    looped = lightgcn_by_loops(part, nodes)
    for expected in (
        torch.cat((looped.user_MD, looped.items.fused_UD)),
        by_a_dense_matrix(pairs, nodes, num_layers),
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)
        weight = torch.randn(actual.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        leaves = nodes.user_MD, nodes.items.fused_UD
        found = torch.autograd.grad((actual * weight).sum(), leaves, retain_graph=True)
        wanted = torch.autograd.grad((expected * weight).sum(), leaves, retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=ATOL)


def test_the_gradient_of_a_gradient_passes_the_graph_too() -> None:
    part = part_of(random_pairs(0), num_layers=2)

    def squares(users: Tensor, items: Tensor) -> Tensor:
        passed = part(Nodes(ItemVectors(items), users))
        return torch.cat((passed.user_MD, passed.items.fused_UD)).pow(3).sum()

    nodes = nodes_of(0)
    leaves = nodes.user_MD, nodes.items.fused_UD
    assert torch.autograd.gradcheck(squares, leaves)
    assert torch.autograd.gradgradcheck(squares, leaves)


def test_an_epoch_trains_on_fewer_edges_and_ranking_reads_all() -> None:
    pairs = [(user, item) for user in range(4) for item in range(5)]
    part, nodes = part_of(pairs, num_layers=1, prune=0.75), nodes_of(1)
    whole = part.eval()(nodes).user_MD
    torch.testing.assert_close(whole, part_of(pairs, num_layers=1)(nodes).user_MD, rtol=0, atol=0)
    kept_of_epoch = []
    for epoch in (1, 2):
        part.begin_epoch(epoch)
        kept = [pair for pair in pairs if reaches(part, *pair)]
        assert len(kept) == 5
        expected = lightgcn_by_loops(part_of(kept, num_layers=1), nodes).user_MD
        torch.testing.assert_close(part.train()(nodes).user_MD, expected, rtol=0, atol=ATOL)
        torch.testing.assert_close(part.eval()(nodes).user_MD, whole, rtol=0, atol=0)
        kept_of_epoch.append(kept)
    assert kept_of_epoch[0] != kept_of_epoch[1]


def reaches(part: LightGCN, user: int, item: int) -> bool:
    """Whether a change of the item alone changes the user, in training."""
    items = torch.zeros(NUM_ITEMS, WIDTH, dtype=torch.float64)
    items[item] = 1
    passed = part.train()(Nodes(ItemVectors(items), torch.zeros(NUM_USERS, WIDTH, dtype=torch.float64)))
    return bool(passed.user_MD[user].any())


def test_edges_between_busy_users_and_much_touched_items_are_left_out_most() -> None:
    pairs = [(0, item) for item in range(5)] + [(user, 0) for user in range(1, 4)]
    part, kept = part_of(pairs, num_layers=1, prune=0.5), dict.fromkeys(pairs, 0)
    for epoch in range(1, 501):
        part.begin_epoch(epoch)
        for pair in pairs:
            kept[pair] += reaches(part, *pair)
    assert sum(kept.values()) == 500 * 4
    busiest = kept.pop((0, 0))  # its user has five edges, its item four
    assert all(times > busiest + 50 for times in kept.values()), kept


def test_other_nodes_than_those_of_the_graph_are_refused() -> None:
    part, nodes = part_of(random_pairs(0)), nodes_of(0)
    for wrong in (Nodes(nodes.items), Nodes(ItemVectors(nodes.items.fused_UD[:4]), nodes.user_MD)):
        with pytest.raises(ValueError, match="the graph has 5 users and 6 items, found vectors of"):
            part(wrong)
