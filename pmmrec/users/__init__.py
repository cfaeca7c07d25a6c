"""User encoders: hidden states out of the order in which a user touched items."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pmmrec.adapters import Host
from pmmrec.family import Family


class UserEncoder(nn.Module, ABC):
    """Built as `part_class(config, context)`. `max_inputs` is the longest history it can read."""

    max_inputs: int

    @property
    def host(self) -> Host | None:
        """The blocks that may carry adapters; None where there are none."""
        return None

    @abstractmethod
    def forward(self, inputs_BLD: Tensor, is_valid_BL: Tensor) -> Tensor:
        """Left-padded item vectors -> hidden states `(B, L, D)`; those of padding mean nothing."""


user_encoders: Family[UserEncoder] = Family("user encoder", home=__name__)
