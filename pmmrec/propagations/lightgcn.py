"""Mean of vectors over the layers of a graph (LightGCN)."""
# Shapes: M users, N items, V = M + N nodes, E edges, D width, K layers.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pmmrec.context import BuildContext, InteractionGraph
from pmmrec.contracts import Nodes
from pmmrec.errors import RecipeError
from pmmrec.packing import Ints
from pmmrec.precision import outside_autocast, widened
from pmmrec.propagations import Propagation, propagations
from pmmrec.propagations.adjacency import Adjacency
from pmmrec.propagations.room import check_room
from pmmrec.settings import PartConfig

BYTES_OF_NODE, BYTES_OF_EDGE = 24, 160  # while an adjacency is sorted; numbers are of eight bytes


class LightGCNConfig(PartConfig):
    """Settings of LightGCN."""

    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"num_layers": 1, "prune": 0.5},
        {"normalization": "mean", "adds_items": True},
    )
    type: Literal["lightgcn"] = "lightgcn"
    num_layers: int = Field(default=3, ge=1, le=100, description="How many edges away a vector is passed.")
    prune: float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the edges that each epoch trains without, drawn anew; edges between much touched items "
        "and busy users are left out most (FREEDOM: 0.8). Ranking reads all edges.",
    )
    normalization: Literal["symmetric", "mean"] = Field(
        default="symmetric",
        description="symmetric: D^-1/2 A D^-1/2. mean: D^-1 (A + I), the mean of neighbours and node (LATTICE).",
    )
    adds_items: bool = Field(default=False, description="The vectors of items are added to their means (BM3).")


@propagations.register("lightgcn", LightGCNConfig)
class LightGCN(Propagation):
    """Give each user and item the mean of its own vector and of what K layers of neighbours pass on.

    `out = 1 / (K + 1) * sum over k = 0..K of (D^-1/2 A D^-1/2)^k x`, with x the vectors of users and items, A the
    interactions of training, each once, and D the degrees (arXiv 2002.02126, eq. 3 and 8). With `prune`, each epoch
    keeps a share of the edges, drawn without replacement with weights `1 / sqrt(degree of user x degree of item)`, and
    its degrees are those of the kept edges (FREEDOM, arXiv 2211.06924). Only the vectors that rank are passed on;
    streams stay as they are.

    LATTICE (arXiv 2104.09036) takes `D^-1 (A + I)` for the matrix, with D the degrees and 1; BM3 (arXiv 2207.05969)
    adds the vector of an item to its mean.

    Example:
        model: {user_encoder: {type: user_table}, propagation: {type: lightgcn, num_layers: 3}}
    """

    reads_graph = True

    def __init__(self, config: LightGCNConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_layers, self.prune, self._seed = config.num_layers, config.prune, context.seed
        self.normalization, self.adds_items = config.normalization, config.adds_items
        self.graph = only(context.graphs)
        self._edges = edges_of(self.graph)
        self._whole = Adjacency(*self._edges, self.graph.num_users, self.graph.num_items)
        self._pruned: Adjacency | None = None

    def begin_epoch(self, epoch: int) -> None:
        """Draw the edges of the epoch."""
        if self.prune:
            kept = _kept(*self._edges, self.prune, np.random.default_rng((self._seed, epoch)))
            self._pruned = Adjacency(*kept, self.graph.num_users, self.graph.num_items)

    def forward(self, nodes: Nodes) -> Nodes:
        """Vectors of all items and users. ValueError where they are not those of the graph."""
        user_MD, item_ND = checked(nodes, self.graph, "lightgcn")
        with outside_autocast(item_ND.device):
            user_MD, passed_ND = self.passed(widened(user_MD), widened(item_ND), self.adjacency)
        return Nodes(replace(nodes.items, fused_UD=passed_ND), user_MD)

    @property
    def adjacency(self) -> Adjacency:
        """The edges that are read now: in training those of the epoch."""
        return self._pruned if self.training and self._pruned is not None else self._whole

    def passed(self, user_MD: Tensor, item_ND: Tensor, adjacency: Adjacency) -> tuple[Tensor, Tensor]:
        """What these edges make of vectors of all users and items, outside autocast."""
        mean_VD = self._mean(torch.cat((user_MD, item_ND)), adjacency)
        user_MD, passed_ND = mean_VD[: len(user_MD)], mean_VD[len(user_MD) :]
        return user_MD, passed_ND + item_ND if self.adds_items else passed_ND

    def _mean(self, x_VD: Tensor, adjacency: Adjacency) -> Tensor:
        sum_VD = x_VD
        for _ in range(self.num_layers):
            x_VD = adjacency.mean(x_VD, with_self=True) if self.normalization == "mean" else adjacency.times(x_VD)
            sum_VD = sum_VD + x_VD
        return sum_VD / (self.num_layers + 1)


def only(graphs: Sequence[InteractionGraph]) -> InteractionGraph:
    """The graph of the one domain that a model serves. RecipeError where there is none, or several."""
    if not graphs:
        raise RecipeError(
            "propagation: a graph needs the interactions of the domain that it serves; none is given, so this model "
            "cannot be built without it"
        )
    if len(graphs) > 1:
        raise RecipeError(
            f"propagation: a graph holds the users and items of one domain, found {len(graphs)}; train on one"
        )
    return graphs[0]


def checked(nodes: Nodes, graph: InteractionGraph, part: str) -> tuple[Tensor, Tensor]:
    """Vectors of all users and items. ValueError where they are not those of the graph."""
    item_ND, user_MD = nodes.items.fused_UD, nodes.user_MD
    found = (0 if user_MD is None else len(user_MD), len(item_ND))
    if user_MD is None or found != (graph.num_users, graph.num_items):
        raise ValueError(
            f"{part}: the graph has {graph.num_users} users and {graph.num_items} items, found vectors of {found[0]} "
            f"and {found[1]}"
        )
    return user_MD, item_ND


def edges_of(graph: InteractionGraph) -> tuple[Ints, Ints]:
    """User and item of each pair that occurs, once, by user. RecipeError where their graph does not fit."""
    user_E, item_E = graph.read()
    nodes = f"{graph.num_users:,} users, {graph.num_items:,} items and {len(user_E):,} interactions"
    check_room(nodes, BYTES_OF_NODE * (graph.num_users + graph.num_items) + BYTES_OF_EDGE * len(user_E))
    key_E = np.unique(user_E * graph.num_items + item_E)
    return key_E // graph.num_items, key_E % graph.num_items


def _kept(user_E: Ints, item_E: Ints, prune: float, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Edges drawn without replacement by weight: those with the largest `log(u) / weight` (Efraimidis and Spirakis)."""
    num_kept = max(1, round((1 - prune) * len(user_E)))
    weight_E = 1 / np.sqrt(np.bincount(user_E)[user_E].astype(np.float64) * np.bincount(item_E)[item_E])
    key_E = np.log(1 - rng.random(len(user_E))) / weight_E
    kept = np.sort(np.argpartition(-key_E, min(num_kept, len(key_E) - 1))[:num_kept])
    return user_E[kept], item_E[kept]
