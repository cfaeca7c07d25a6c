"""Fusion: one vector for an item out of what its encoders said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from pmmrec.contracts import Modality, TokenStates
from pmmrec.family import Family


class Fusion(nn.Module, ABC):
    """Built as `part_class(config, context)`."""

    @abstractmethod
    def forward(self, states: Mapping[Modality, TokenStates]) -> Tensor:
        """States of the same U items by modality -> `(U, D)`. A modality that an item lacks has no valid token."""


fusions: Family[Fusion] = Family("fusion", home=__name__)
