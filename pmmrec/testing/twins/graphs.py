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

    def share(user: int, item: int) -> float:
        return 1 / math.sqrt(len(touched[user]) * len(by_whom[item]))

    for layer in range(propagation.num_layers):
        passed = [
            _sum([share(user, item) * items[layer][item] for item in touched[user]], zero)
            for user in range(graph.num_users)
        ]
        items.append(
            [
                _sum([share(user, item) * users[layer][user] for user in by_whom[item]], zero)
                for item in range(graph.num_items)
            ]
        )
        users.append(passed)
    return Nodes(ItemVectors(_mean(items)), _mean(users))


def _mean(layers: list[list[Tensor]]) -> Tensor:
    """Of each node over the layers."""
    nodes = zip(*layers, strict=True)
    return torch.stack([_sum(list(of_node), torch.zeros_like(of_node[0])) / len(layers) for of_node in nodes])


def _sum(vectors: list[Tensor], zero: Tensor) -> Tensor:
    total = zero
    for vector in vectors:
        total = total + vector
    return total
