"""Fusion: one vector for an item out of what its encoders said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from pmmrec.contracts import TokenStates
from pmmrec.family import Family


class Fusion(nn.Module, ABC):
    """Built as `part_class(config, context)`."""

    @abstractmethod
    def forward(self, states: Mapping[str, TokenStates]) -> Tensor:
        """States of the same U items by field -> `(U, D)`. A field that an item lacks has no token."""


fusions: Family[Fusion] = Family("fusion", home=__name__, group="items")
