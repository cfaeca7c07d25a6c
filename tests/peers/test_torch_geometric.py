"""Propagations over graphs give the vectors, and the gradients, of torch_geometric's own layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext, InteractionGraph, ItemFeature
from pmmrec.contracts import ItemVectors, Nodes
from pmmrec.propagations import propagations
from pmmrec.propagations.lightgcn import edges_of
from pmmrec.propagations.neighbors import gathered, list_of, normalized

library = pytest.importorskip("torch_geometric")
layers = pytest.importorskip("torch_geometric.nn")
of_gcn = pytest.importorskip("torch_geometric.nn.conv.gcn_conv")

ATOL = 1e-12  # float64
NUM_USERS, NUM_ITEMS, WIDTH, NEIGHBORS = 30, 20, 8, 4
WEIGHTS = {"content": 0.9, "image_content": 0.1}


def feature(name: str) -> ItemFeature:
    vectors_NF = np.random.default_rng(len(name)).normal(size=(NUM_ITEMS, 6))
    return ItemFeature(name, lambda: (vectors_NF, np.ones(NUM_ITEMS, dtype=bool)))


def drawn_pairs() -> tuple[Any, Any]:
    draw = np.random.default_rng(0)
    return draw.integers(0, NUM_USERS - 1, 150), draw.integers(0, NUM_ITEMS - 1, 150)  # the last ones touch nothing


GRAPH = InteractionGraph(NUM_USERS, NUM_ITEMS, drawn_pairs, feature)


def ours(settings: dict[str, Any], x_VD: Tensor) -> Tensor:
    config = propagations.config(settings)
    part_class: Any = propagations.part_class(config)
    part = part_class(config, BuildContext(WIDTH, graphs=[GRAPH])).double().eval()
    passed = part(Nodes(ItemVectors(x_VD[NUM_USERS:]), x_VD[:NUM_USERS]))
    return torch.cat((passed.user_MD, passed.items.fused_UD))


def lightgcn(x_VD: Tensor, num_layers: int) -> Tensor:
    """Of torch_geometric's model, whose table is ours."""
    user_E, item_E = map(torch.from_numpy, edges_of(GRAPH))
    edges_2E = torch.stack((torch.cat((user_E, NUM_USERS + item_E)), torch.cat((NUM_USERS + item_E, user_E))))
    alpha = torch.full((num_layers + 1,), 1 / (num_layers + 1), dtype=torch.float64)  # its own is float32
    model = layers.LightGCN(NUM_USERS + NUM_ITEMS, WIDTH, num_layers, alpha).double()
    del model.embedding.weight
    model.embedding.weight = x_VD
    embedded: Tensor = model.get_embedding(edges_2E)
    return embedded


def similar(item_ND: Tensor, *, keeps_cosines: bool) -> Tensor:
    """The sum over features of what the nearest items give, with symmetric normalisation of rows that each lists."""
    pass_on, total = layers.SimpleConv(aggr="sum", flow="target_to_source"), torch.zeros_like(item_ND)
    for name, weight in WEIGHTS.items():
        unit_NF = F.normalize(torch.from_numpy(feature(name).read()[0]), dim=1)
        cosine_Nk, list_Nk = (unit_NF @ unit_NF.T).topk(NEIGHBORS, dim=1)
        edges_2E = torch.stack((torch.arange(NUM_ITEMS).repeat_interleave(NEIGHBORS), list_Nk.flatten()))
        value_E = cosine_Nk.flatten() if keeps_cosines else torch.ones_like(cosine_Nk).flatten()
        normed: Sequence[Tensor] = of_gcn.gcn_norm(
            edges_2E, value_E, NUM_ITEMS, add_self_loops=False, flow="target_to_source", dtype=torch.float64
        )
        total = total + weight * pass_on(item_ND, *normed)
    return total


def assert_same(actual: Tensor, expected: Tensor, x_VD: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=ATOL)
    factor_VD = torch.randn(actual.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gradients = [torch.autograd.grad((one * factor_VD).sum(), x_VD)[0] for one in (actual, expected)]
    torch.testing.assert_close(*gradients, rtol=0, atol=ATOL)


@pytest.fixture
def x_VD() -> Tensor:
    drawn = torch.Generator().manual_seed(1)
    return torch.randn(NUM_USERS + NUM_ITEMS, WIDTH, generator=drawn, dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("num_layers", [1, 3])
def test_lightgcn(x_VD: Tensor, num_layers: int) -> None:
    assert_same(ours({"type": "lightgcn", "num_layers": num_layers}, x_VD), lightgcn(x_VD, num_layers), x_VD)


def test_item_graph(x_VD: Tensor) -> None:
    """FREEDOM: lists of ones."""
    settings = {"type": "item_graph", "features": WEIGHTS, "neighbors": NEIGHBORS, "interactions": {"num_layers": 2}}
    expected = lightgcn(x_VD, 2)
    similar_ND = similar(x_VD[NUM_USERS:], keeps_cosines=False)
    expected = torch.cat((expected[:NUM_USERS], expected[NUM_USERS:] + similar_ND))
    assert_same(ours(settings, x_VD), expected, x_VD)


def test_the_fixed_lists_of_lattice(x_VD: Tensor) -> None:
    """LATTICE: lists of cosines, by the sums of rows."""
    total = torch.zeros_like(x_VD[NUM_USERS:])
    for name, weight in WEIGHTS.items():
        list_Nk, cosine_Nk, _ = list_of(feature(name), NEIGHBORS)
        total = total + weight * gathered(normalized(cosine_Nk, list_Nk), list_Nk, x_VD[NUM_USERS:])
    assert_same(total, similar(x_VD[NUM_USERS:], keeps_cosines=True), x_VD)
