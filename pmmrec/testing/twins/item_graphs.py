"""Graphs of similar items as dense matrices of all pairs, filled by loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from pmmrec.contracts import Nodes
from pmmrec.propagations import propagations
from pmmrec.propagations.item_graph import ComparesItems, ItemGraph
from pmmrec.propagations.learned_item_graph import LearnedItemGraph
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.graphs import lightgcn_by_loops


@twin_of(propagations, "item_graph")
def item_graph_by_loops(propagation: ItemGraph, nodes: Nodes) -> Nodes:
    """Ones at the nearest items by stored vectors, divided by the roots of the sums of rows."""
    matrix_NN = torch.zeros((), dtype=torch.float64)
    for weight, name in zip(propagation.weights, propagation.features, strict=True):
        stored_NF, has = _stored(propagation, name)
        matrix_NN = matrix_NN + weight * _normalized(_matrix(propagation, stored_NF, has, stored_NF, lambda _: 1.0))
    return _added(propagation, nodes, _power(matrix_NN, propagation.item_layers) @ nodes.items.fused_UD)


@twin_of(propagations, "learned_item_graph")
def learned_item_graph_by_loops(propagation: LearnedItemGraph, nodes: Nodes) -> Nodes:
    """Cosines of streams and of stored vectors at the nearest items.

    The lists are those of stored vectors before an epoch has begun, as in every check that compares twins.
    """
    names = sorted(propagation.features)
    logit = torch.zeros(1, dtype=torch.float64) if propagation.logit is None else propagation.logit
    weight_F = logit.exp() / logit.exp().sum()
    learned_NN, fixed_NN = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    for weight, name, stream in zip(weight_F, names, propagation.stream_names, strict=True):
        stored_NF, has = _stored(propagation, name)
        fixed_NN = fixed_NN + weight * _normalized(_matrix(propagation, stored_NF, has, stored_NF, lambda x: x))
        x_ND = nodes.items.streams_UD[stream]
        learned_NN = learned_NN + weight * _matrix(propagation, stored_NF, has, x_ND, lambda x: x)
    matrix_NN = propagation.share * _normalized(learned_NN) + (1 - propagation.share) * fixed_NN
    similar_ND = _power(matrix_NN, propagation.item_layers) @ nodes.items.fused_UD
    return _added(propagation, nodes, torch.stack([row / row.square().sum().sqrt() for row in similar_ND]))


def _added(propagation: ComparesItems, nodes: Nodes, similar_ND: Tensor) -> Nodes:
    passed = lightgcn_by_loops(propagation.interactions, nodes)
    return dataclasses.replace(
        passed, items=dataclasses.replace(passed.items, fused_UD=passed.items.fused_UD + similar_ND)
    )


def _stored(propagation: ComparesItems, name: str) -> tuple[Tensor, list[bool]]:
    vectors_NF, has_N = propagation.graph.feature(name).read()
    return torch.from_numpy(vectors_NF).double(), has_N.tolist()


def _matrix(
    propagation: ComparesItems,
    listed_NF: Tensor,
    has: list[bool],
    x_ND: Tensor,
    value: Callable[[Tensor], Tensor | float],
) -> Tensor:
    """`(N, N)`: at the nearest items of each by `listed_NF` a function of the cosine of x; of itself 1."""
    num_items, k = len(x_ND), propagation.get_buffer("list_FNk").shape[2]
    rows = []
    for item in range(num_items):
        others = [other for other in range(num_items) if other != item and has[item] and has[other]]
        others.sort(key=lambda other: -float(_cosine(listed_NF[item], listed_NF[other])))
        row = [torch.zeros((), dtype=torch.float64)] * num_items
        for other in others[: k - 1]:
            row[other] = torch.as_tensor(value(_cosine(x_ND[item], x_ND[other])), dtype=torch.float64)
        num_itself = k - min(len(others), k - 1)  # once, and in the place of those that are not there
        row[item] = torch.tensor(float(num_itself), dtype=torch.float64)
        rows.append(torch.stack(row))
    return torch.stack(rows)


def _cosine(one_D: Tensor, other_D: Tensor) -> Tensor:
    return (one_D * other_D).sum() / (one_D.square().sum().sqrt() * other_D.square().sum().sqrt())


def _normalized(matrix_NN: Tensor) -> Tensor:
    sums = [row.sum() for row in matrix_NN]
    return torch.stack(
        [
            torch.stack(
                [
                    value / (sums[i] * sums[j]).sqrt() if sums[i] > 0 and sums[j] > 0 else torch.zeros_like(value)
                    for j, value in enumerate(row)
                ]
            )
            for i, row in enumerate(matrix_NN)
        ]
    )


def _power(matrix_NN: Tensor, times: int) -> Tensor:
    power_NN = matrix_NN
    for _ in range(times - 1):
        power_NN = power_NN @ matrix_NN
    return power_NN
