"""Propagations by loops over users, items and their neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmmrec.contracts import ItemVectors, Nodes
from pmmrec.propagations import propagations
from pmmrec.propagations.identity import Identity
from pmmrec.propagations.lightgcn import LightGCN
from pmmrec.testing.twins import twin_of


@twin_of(propagations, "identity")
def unchanged(propagation: Identity, nodes: Nodes) -> Nodes:
    """Each vector by itself."""
    del propagation
    users = None if nodes.user_MD is None else torch.stack([row * 1 for row in nodes.user_MD])
    return Nodes(ItemVectors(torch.stack([row * 1 for row in nodes.items.fused_UD])), users)


@twin_of(propagations, "lightgcn")
def lightgcn_by_loops(propagation: LightGCN, nodes: Nodes) -> Nodes:
    """One layer after another, one neighbour after another; on all edges of the graph."""
    graph, item_ND, user_MD = propagation.graph, nodes.items.fused_UD, nodes.user_MD
    if user_MD is None:
        raise ValueError("a graph needs users")
    pairs = {(int(user), int(item)) for user, item in zip(*graph.read(), strict=True)}
    touched = [[item for item in range(graph.num_items) if (user, item) in pairs] for user in range(graph.num_users)]
    by_whom = [[user for user in range(graph.num_users) if (user, item) in pairs] for item in range(graph.num_items)]
    users, items = [list(user_MD)], [list(item_ND)]
    zero = torch.zeros_like(item_ND[0])

    def share(user: int, item: int, of: int) -> float:
        if propagation.normalization == "mean":
            return 1 / (of + 1)
        return 1 / math.sqrt(len(touched[user]) * len(by_whom[item]))

    def own(of: int, vector: Tensor) -> Tensor:
        return vector / (of + 1) if propagation.normalization == "mean" else zero

    for layer in range(propagation.num_layers):
        of_users = []
        for user, its in enumerate(touched):
            shares = [share(user, item, len(its)) * items[layer][item] for item in its]
            of_users.append(_sum([*shares, own(len(its), users[layer][user])], zero))
        of_items = []
        for item, whose in enumerate(by_whom):
            shares = [share(user, item, len(whose)) * users[layer][user] for user in whose]
            of_items.append(_sum([*shares, own(len(whose), items[layer][item])], zero))
        users.append(of_users)
        items.append(of_items)
    passed_ND = _mean(items)
    return Nodes(ItemVectors(passed_ND + item_ND if propagation.adds_items else passed_ND), _mean(users))


def _mean(layers: list[list[Tensor]]) -> Tensor:
    """Of each node over the layers."""
    nodes = zip(*layers, strict=True)
    return torch.stack([_sum(list(of_node), torch.zeros_like(of_node[0])) / len(layers) for of_node in nodes])


def _sum(vectors: list[Tensor], zero: Tensor) -> Tensor:
    total = zero
    for vector in vectors:
        total = total + vector
    return total
