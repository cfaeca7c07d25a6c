"""Graphs of similar items equal their dense matrices, in values and gradients, also where items lack vectors."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pmmrec.context import BuildContext, InteractionGraph, ItemFeature
from pmmrec.contracts import ItemVectors, Nodes
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.propagations import neighbors, propagations
from pmmrec.testing.twins import find_twin

ATOL = 1e-12  # float64; measured 1e-15
NUM_USERS, NUM_ITEMS, WIDTH = 4, 9, 3
LACKING = {"content": (2, 7), "image_content": (0, 2)}  # items by feature; one has neither
FIXED = {"type": "item_graph", "features": {"content": 0.9, "image_content": 0.1}, "item_layers": 2}
LEARNED = {"type": "learned_item_graph", "features": {"content": "text", "image_content": "image"}, "learned": 0.4}


def graph_of(seed: int = 0, scale: float = 1.0) -> InteractionGraph:
    draw = np.random.default_rng(seed)
    users, items = draw.integers(0, NUM_USERS, 12), draw.integers(0, NUM_ITEMS, 12)

    def feature(name: str) -> ItemFeature:
        has_N = ~np.isin(np.arange(NUM_ITEMS), LACKING[name])
        vectors = np.random.default_rng((seed, len(name))).normal(size=(NUM_ITEMS, 5)) * has_N[:, None]
        return ItemFeature(f"{name} {scale}", lambda: (vectors, has_N))

    return InteractionGraph(NUM_USERS, NUM_ITEMS, lambda: (users, items), feature)


def part_of(settings: dict[str, Any], graph: InteractionGraph | None = None) -> Any:
    config = propagations.config({"neighbors": 3, **settings})
    part_class: Any = propagations.part_class(config)
    return part_class(config, BuildContext(WIDTH, graphs=[graph or graph_of()])).double()


def nodes_of(part: Any, seed: int = 0) -> Nodes:
    draw = torch.Generator().manual_seed(seed)

    def leaf(rows: int) -> Tensor:
        return torch.randn(rows, WIDTH, generator=draw, dtype=torch.float64).requires_grad_()

    return Nodes(
        ItemVectors(leaf(NUM_ITEMS), streams_UD={name: leaf(NUM_ITEMS) for name in part.streams}), leaf(NUM_USERS)
    )


@pytest.mark.parametrize("settings", [FIXED, LEARNED, {**FIXED, "neighbors": NUM_ITEMS}, {**LEARNED, "neighbors": 1}])
def test_a_graph_of_items_equals_its_dense_matrix(settings: dict[str, Any]) -> None:
    part = part_of(settings).eval()
    nodes, twin = nodes_of(part), find_twin(propagations, settings["type"])
    leaves = [nodes.items.fused_UD, nodes.user_MD, *nodes.items.streams_UD.values(), *part.parameters()]
    both = []
    for passed in (part(nodes), twin(part, nodes)):
        x_VD = torch.cat((passed.user_MD, passed.items.fused_UD))
        weight_VD = torch.randn(x_VD.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
        both.append([x_VD, *torch.autograd.grad((x_VD * weight_VD).sum(), leaves, materialize_grads=True)])
    for actual, expected in zip(*both, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)


def test_lists_are_found_in_blocks_and_hold_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    vector_NF = torch.randn(NUM_ITEMS, 4, generator=torch.Generator().manual_seed(1))
    has_N = torch.arange(NUM_ITEMS) != 4
    whole_NK = neighbors.nearest(vector_NF, has_N, 4)
    monkeypatch.setattr(neighbors, "CELLS_AT_ONCE", 2 * NUM_ITEMS)
    assert torch.equal(neighbors.nearest(vector_NF, has_N, 4), whole_NK)
    for item in range(NUM_ITEMS):
        cosine_N = torch.cosine_similarity(vector_NF[item], vector_NF, dim=1)
        others = [other for other in cosine_N.argsort(descending=True).tolist() if other not in (4, item)]
        assert whole_NK[item].tolist() == ([4] * 4 if item == 4 else [item, *others[:3]])


def test_the_first_step_of_an_epoch_finds_the_lists_of_what_is_learned() -> None:
    part = part_of(LEARNED).train()
    stored = part.get_buffer("learned_FNk").clone()
    lists = []
    for epoch, seed in ((1, 1), (2, 2)):
        part.begin_epoch(epoch)
        part(nodes_of(part, seed))
        lists.append(part.get_buffer("learned_FNk").clone())
        part(nodes_of(part, seed + 7))
        assert torch.equal(part.get_buffer("learned_FNk"), lists[-1])  # later steps keep them
    assert not torch.equal(lists[0], stored)
    assert not torch.equal(lists[0], lists[1])
    resumed = part_of(LEARNED).train()
    resumed.load_state_dict(part.state_dict())
    resumed.begin_epoch(2)  # amid the second epoch
    assert torch.equal(resumed(nodes_of(part, 5)).items.fused_UD, part(nodes_of(part, 5)).items.fused_UD)


@pytest.mark.parametrize("settings", [FIXED, LEARNED])
def test_other_stored_vectors_are_refused(settings: dict[str, Any]) -> None:
    other = part_of(settings, graph_of(scale=2.0))
    with pytest.raises(CheckpointError, match="was learned with other vectors of content and image_content"):
        other.load_state_dict(part_of(settings).state_dict())


@pytest.mark.parametrize(
    ("graph", "settings", "found"),
    [
        (graph_of(), {**FIXED, "neighbors": 10}, "10 neighbors of each item, and there are 9 items; choose 9 or fewer"),
        (
            dataclasses.replace(graph_of(), num_items=10**12),
            FIXED,
            "lists of 3 neighbors of 1,000,000,000,000 items take 144,000,000,000,000 bytes, and .* are free",
        ),
        (
            dataclasses.replace(graph_of(), num_users=10**13),
            FIXED,
            "10,000,000,000,000 users, .* take .* bytes, and .* are free",
        ),
    ],
)
def test_a_graph_that_does_not_fit_is_refused_before_it_is_built(
    graph: InteractionGraph, settings: dict[str, Any], found: str
) -> None:
    with pytest.raises(RecipeError, match=found):
        part_of(settings, graph)
