"""How much a user in a state would like an item."""
# Shapes: B users, N items, D width.

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pmmrec.models import Scorer, scorers
from pmmrec.settings import PartConfig


class DotConfig(PartConfig):
    """Settings of the dot product; there are none."""

    type: Literal["dot"] = "dot"


@scorers.register("dot", DotConfig)
class Dot(Scorer):
    """The dot product of hidden state and item vector: what DAP (eq. 5) trains."""

    def __init__(self, config: DotConfig, width: int) -> None:
        super().__init__()
        del config, width  # a dot product has neither settings nor parameters

    def forward(self, hidden_BD: Tensor, items_ND: Tensor) -> Tensor:
        """Scores `(B, N)`; larger is better."""
        return hidden_BD @ items_ND.T
