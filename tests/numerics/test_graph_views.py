"""Views of a graph equal dense matrices without the drawn edges and nodes, in values and gradients."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from pmmrec.context import BuildContext, InteractionGraph
from pmmrec.contracts import GraphView, ItemVectors, Nodes, UserStates, Views
from pmmrec.errors import RecipeError
from pmmrec.hashed import left_in, one_of
from pmmrec.objectives import objectives
from pmmrec.objectives.graph_contrast import GraphContrast, GraphContrastConfig
from pmmrec.propagations.lightgcn import edges_of
from pmmrec.propagations.stream_graph import CHANGED, EDGES, ITEMS, MASKED, USERS, StreamGraph, StreamGraphConfig
from pmmrec.requests import NextItems
from pmmrec.testing.twins import find_twin
from pmmrec.testing.world import NUM_ITEMS, WIDTH, batch_of, task_of
from pmmrec.train.task import TrainingTask

ATOL = 1e-12  # float64; measured 2e-15
NUM_USERS, NUM_LAYERS, SHARE = 5, 2, 0.3
STREAMS = ("image", "text")  # in the order in which they lie side by side
GRAPH = InteractionGraph(
    NUM_USERS, NUM_ITEMS, lambda: (np.array([0, 0, 0, 1, 1, 2, 3, 3]), np.array([0, 1, 2, 1, 3, 4, 2, 5]))
)


@pytest.fixture
def part() -> StreamGraph:
    torch.manual_seed(0)
    views = {"edges": SHARE, "nodes": SHARE}
    config = StreamGraphConfig.model_validate(
        {"streams": STREAMS, "interactions": {"num_layers": NUM_LAYERS}, "views": views}
    )
    return StreamGraph(config, BuildContext(WIDTH, graphs=[GRAPH])).double()


@pytest.fixture
def nodes() -> Nodes:
    drawn = torch.Generator().manual_seed(1)

    def leaf(rows: int) -> Tensor:
        return torch.randn(rows, WIDTH, generator=drawn, dtype=torch.float64).requires_grad_()

    items = ItemVectors(leaf(NUM_ITEMS), streams_UD={name: leaf(NUM_ITEMS) for name in STREAMS})
    return Nodes(items, leaf(NUM_USERS))


def dense(lacking: set[tuple[int, int]], x_VD: Tensor) -> Tensor:
    """The mean over layers, by the dense matrix of the edges that are not lacking."""
    matrix_VV = torch.zeros(len(x_VD), len(x_VD), dtype=torch.float64)
    for user, item in zip(*(column.tolist() for column in edges_of(GRAPH)), strict=True):
        if (user, item) not in lacking:
            matrix_VV[user, NUM_USERS + item] = matrix_VV[NUM_USERS + item, user] = 1
    root_V = matrix_VV.sum(dim=0).clamp(min=1).sqrt()
    matrix_VV = matrix_VV / root_V[:, None] / root_V[None, :]
    layers = [x_VD]
    for _ in range(NUM_LAYERS):
        layers.append(matrix_VV @ layers[-1])
    return torch.stack(layers).mean(dim=0)


def views_by_matrices(part: StreamGraph, nodes: Nodes, draw: Tensor) -> list[GraphView]:
    """As MMGCL's paper tells them, one stream after another."""
    edges = list(zip(*(column.tolist() for column in edges_of(GRAPH)), strict=True))
    keeps_edge = left_in(draw, len(edges), SHARE, EDGES).tolist()
    keeps_user, keeps_item = left_in(draw, NUM_USERS, SHARE, USERS), left_in(draw, NUM_ITEMS, SHARE, ITEMS)
    edges_left_out = {edge for edge, is_kept in zip(edges, keeps_edge, strict=True) if not is_kept}
    of_nodes_left_out = {(user, item) for user, item in edges if not (keeps_user[user] and keeps_item[item])}
    assert len(edges_left_out) == round(SHARE * len(edges))
    assert (int((~keeps_user).sum()), int((~keeps_item).sum())) == (round(0.3 * NUM_USERS), round(0.3 * NUM_ITEMS))
    masked = 1 + int(one_of(draw, 2, MASKED))
    of_items = [nodes.items.fused_UD, *(nodes.items.streams_UD[name] for name in STREAMS)]
    found = []
    for view in range(2):
        passed = []
        for place, item_ND in enumerate(of_items):
            lacking = edges_left_out if view == 0 else of_nodes_left_out if place == masked else set()
            passed.append(dense(lacking, torch.cat((nodes.user_MD, item_ND))))
        users = torch.cat([x_VD[:NUM_USERS] for x_VD in passed], dim=1) @ part.of_users.weight.T + part.of_users.bias
        items = torch.cat([x_VD[NUM_USERS:] for x_VD in passed], dim=1) @ part.of_items.weight.T + part.of_items.bias
        changed = 1 + int(one_of(draw, 2, CHANGED[view]))
        block = part.of_items.weight[:, changed * WIDTH : (changed + 1) * WIDTH]
        found.append(GraphView(items, users, passed[changed][NUM_USERS:] @ block.T))
    return found


@pytest.mark.parametrize("number", range(4))  # both streams are masked, and changed, in one of them
def test_views_equal_dense_matrices(part: StreamGraph, nodes: Nodes, number: int) -> None:
    draw = torch.tensor(number)
    leaves = [nodes.user_MD, nodes.items.fused_UD, *nodes.items.streams_UD.values(), *part.parameters()]
    both = []
    for views in (part(dataclasses.replace(nodes, draw=draw)).views, views_by_matrices(part, nodes, draw)):
        tensors = [tensor for view in views for tensor in (view.item_ND, view.user_MD, view.share_ND)]
        drawn = torch.Generator().manual_seed(9)
        total = sum((x * torch.randn(x.shape, generator=drawn, dtype=torch.float64)).sum() for x in tensors)
        both.append([*tensors, *torch.autograd.grad(total, leaves)])
    assert len(both[0]) == 6 + len(leaves)
    for actual, expected in zip(*both, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)


def test_a_graph_without_a_draw_gives_no_views_and_the_same_vectors(part: StreamGraph, nodes: Nodes) -> None:
    plain, viewed = part(nodes), part(dataclasses.replace(nodes, draw=torch.tensor(3)))
    assert plain.views == ()
    assert torch.equal(plain.items.fused_UD, viewed.items.fused_UD)
    assert torch.equal(plain.user_MD, viewed.user_MD)


def test_what_is_left_out_depends_on_the_draw_and_on_what_it_is_for() -> None:
    kept = [
        left_in(torch.tensor(draw), 1000, 0.05, salt) for draw, salt in ((1, EDGES), (1, EDGES), (2, EDGES), (1, USERS))
    ]
    assert torch.equal(kept[0], kept[1])
    assert all(int((~one).sum()) == 50 for one in kept)
    assert all(int((~kept[0] & ~other).sum()) < 12 for other in kept[2:])  # 2.5 are expected
    drawn = torch.stack([one_of(torch.tensor(draw), 3, MASKED) for draw in range(3000)])
    assert drawn.bincount(minlength=3).tolist() == pytest.approx([1000] * 3, abs=100)


def test_the_contrast_of_views_equals_loops(part: StreamGraph, nodes: Nodes) -> None:
    objective = GraphContrast(GraphContrastConfig(), BuildContext(WIDTH))
    batch = batch_of(objective.requests)
    windows = dataclasses.replace(batch.windows, user_index_B=torch.arange(len(batch.windows.item_index_BS)))
    passed = part(dataclasses.replace(nodes, draw=torch.tensor(3)))
    of_pass = windows.passes[NextItems()]
    hidden_BLD = passed.user_MD[windows.user_index_B][:, None].expand(-1, of_pass.is_valid_BL.shape[1], -1)
    states = {NextItems(): UserStates(hidden_BLD, of_pass.is_valid_BL)}
    items = dataclasses.replace(passed.items, has_U=batch.items.has_U)
    views = Views(items, windows, states, lambda *_: items.fused_UD, propagated=passed, unpropagated=nodes)
    leaves = [nodes.user_MD, nodes.items.fused_UD, *nodes.items.streams_UD.values(), *part.parameters()]
    term, (total, count) = objective(views), find_twin(objectives, "graph_contrast")(objective, views)
    assert int(term.count) == count > 5
    torch.testing.assert_close(term.sum, total, rtol=0, atol=ATOL)
    found, wanted = (torch.autograd.grad(one, leaves, retain_graph=True) for one in (term.sum, total))
    for actual, expected in zip(found, wanted, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)
    for place in range(2):  # neither view is left out of the loss
        share = passed.views[place].share_ND
        assert torch.autograd.grad(term.sum, share, retain_graph=True)[0].abs().sum() > 0


def test_views_are_refused_where_nothing_gives_or_reads_them(part: StreamGraph) -> None:
    contrast = {"contrast": objectives.config({"type": "graph_contrast"})}
    recommender = task_of(GraphContrast(GraphContrastConfig(), BuildContext(WIDTH))).recommender
    with pytest.raises(
        RecipeError, match=r"contrast: contrasts views of the graph, which model\.propagation does not give"
    ):
        TrainingTask.of(recommender, contrast, WIDTH)
    recommender.propagation = part
    with pytest.raises(RecipeError, match=r"propagation\.views: has no effect, no objective contrasts them"):
        TrainingTask.of(recommender, {"bpr": objectives.config({"type": "bpr"})}, WIDTH)
