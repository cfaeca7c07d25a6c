"""Propagations by loops over users, items and their neighbours."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from pmmrec.contracts import ItemVectors, Nodes
from pmmrec.propagations import propagations
from pmmrec.propagations.identity import Identity
from pmmrec.propagations.lightgcn import LightGCN
from pmmrec.propagations.mmgcn import MMGCN
from pmmrec.propagations.predictor import Predictor
from pmmrec.propagations.stream_graph import StreamGraph
from pmmrec.testing.twins import twin_of

LAYER = ("of_neighbors.weight", "of_itself.weight", "of_itself.bias", "of_both.weight", "of_both.bias")


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


@twin_of(propagations, "predictor")
def predicted_by_loops(propagation: Predictor, nodes: Nodes) -> Nodes:
    """One vector after another through the linear layer."""
    passed = lightgcn_by_loops(propagation.interactions, nodes)
    weight_DD, bias_D = propagation.linear.weight, propagation.linear.bias

    def predicted(x_RD: Tensor) -> Tensor:
        return torch.stack([_dots(weight_DD, x_D) + bias_D for x_D in x_RD])

    if passed.user_MD is None:
        raise ValueError("a graph needs users")
    return Nodes(ItemVectors(predicted(passed.items.fused_UD)), predicted(passed.user_MD))


@twin_of(propagations, "stream_graph")
def stream_graph_by_loops(propagation: StreamGraph, nodes: Nodes) -> Nodes:
    """One stream after another along the graph, then one node after another through the linear layer."""
    if nodes.user_MD is None:
        raise ValueError("a graph needs users")
    of_items = [nodes.items.fused_UD, *(nodes.items.streams_UD[name] for name in propagation.names)]
    passed = [lightgcn_by_loops(propagation.interactions, Nodes(ItemVectors(x), nodes.user_MD)) for x in of_items]

    def made(layer: nn.Linear, all_RD: list[Tensor]) -> Tensor:
        return torch.stack([_dots(layer.weight, torch.cat(rows)) + layer.bias for rows in zip(*all_RD, strict=True)])

    items_ND = made(propagation.of_items, [one.items.fused_UD for one in passed])
    users_MD = made(propagation.of_users, [one.user_MD for one in passed if one.user_MD is not None])
    return Nodes(ItemVectors(items_ND), users_MD)


@twin_of(propagations, "mmgcn")
def mmgcn_by_loops(propagation: MMGCN, nodes: Nodes) -> Nodes:
    """One stream, one layer, one node, one neighbour after another."""
    graph, item_ND, user_MD = propagation.graph, nodes.items.fused_UD, nodes.user_MD
    if user_MD is None:
        raise ValueError("a graph needs users")
    pairs = {(int(user), graph.num_users + int(item)) for user, item in zip(*graph.read(), strict=True)}
    state = dict(propagation.named_parameters())
    num_nodes = graph.num_users + graph.num_items
    near = [[b for b in range(num_nodes) if (a, b) in pairs or (b, a) in pairs] for a in range(num_nodes)]
    id_VD = [*user_MD, *item_ND]
    of_streams = []
    for name in sorted(propagation.streams):
        first = [*state[f"users.{name}.vector.weight"], *nodes.items.streams_UD[name]]
        x_VD = [x_D / x_D.square().sum().sqrt() for x_D in first]
        for layer in range(len({key.split(".")[2] for key in state if key.startswith(f"layers.{name}.")})):
            of = {key: state[f"layers.{name}.{layer}.{key}"] for key in LAYER}
            x_VD = [
                _leaky(
                    _dots(
                        of["of_both.weight"],
                        torch.cat(
                            (
                                _leaky(
                                    _sum(
                                        [_dots(of["of_neighbors.weight"], x_VD[b]) / len(near[a]) for b in near[a]],
                                        torch.zeros_like(x_VD[a]),
                                    )
                                ),
                                _leaky(_dots(of["of_itself.weight"], x_VD[a]) + of["of_itself.bias"]) + id_VD[a],
                            )
                        ),
                    )
                    + of["of_both.bias"]
                )
                for a in range(num_nodes)
            ]
        of_streams.append(x_VD)
    mean_VD = _mean(of_streams)
    return Nodes(ItemVectors(mean_VD[graph.num_users :]), mean_VD[: graph.num_users])


def _dots(weight_DE: Tensor, x_E: Tensor) -> Tensor:
    return torch.stack([torch.dot(row_E, x_E) for row_E in weight_DE])


def _leaky(x_D: Tensor) -> Tensor:
    return torch.stack([number if number > 0 else 0.01 * number for number in x_D])


def _mean(layers: list[list[Tensor]]) -> Tensor:
    """Of each node over the layers."""
    nodes = zip(*layers, strict=True)
    return torch.stack([_sum(list(of_node), torch.zeros_like(of_node[0])) / len(layers) for of_node in nodes])


def _sum(vectors: list[Tensor], zero: Tensor) -> Tensor:
    total = zero
    for vector in vectors:
        total = total + vector
    return total
