"""Fusion: one vector for an item out of what its encoders said."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from pmmrec.contracts import Modality, TokenStates
from pmmrec.family import Family


class Fusion(nn.Module, ABC):
    """Built as `part_class(config, context)`.

    Attributes:
        num_fields: How many fields it fuses; None: any number.
        reads_tokens: Whether it reads more of a field than the whole.
    """

    num_fields: int | None = None
    reads_tokens: bool = True

    @abstractmethod
    def forward(self, states: Mapping[str, TokenStates]) -> Tensor:
        """States of the same U items by field -> `(U, D)`. A field that an item lacks has no token."""


fusions: Family[Fusion] = Family("fusion", home=__name__, group="items")


def in_order(fields: Iterable[str]) -> list[str]:
    """Fields in the order in which fusions read them: texts by name, then the image."""
    return sorted(fields, key=lambda field: (field == Modality.IMAGE, field))
