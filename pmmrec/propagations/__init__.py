"""Propagations: what a graph of users and items makes of their vectors."""
# Shapes: M users, N items, D width.

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from pmmrec.contracts import Nodes
from pmmrec.family import Family


class Propagation(nn.Module, ABC):
    """Passes vectors along a graph. Built as `part_class(config, context)`.

    A step calls it once, on all items and all users; ranking calls it once after the catalogue is encoded.

    Attributes:
        reads_graph: Whether it reads the interactions of training. Then it serves the domain that it was trained on
            alone, every step holds the whole catalogue, and users must be known by id.
        streams: Names of the streams of items that it reads beside their vectors.
        gives_views: Whether it makes views of nodes with a draw; see `Nodes.views`.
    """

    reads_graph: bool = False
    streams: frozenset[str] = frozenset()
    gives_views: bool = False

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for an epoch, numbered from 1: a pure function of the context's seed and the epoch."""

    @abstractmethod
    def forward(self, nodes: Nodes) -> Nodes:
        """Vectors of the same items and users. It must run on meta tensors."""


propagations: Family[Propagation] = Family("propagation", home=__name__, group="propagation")
