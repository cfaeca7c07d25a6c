"""No graph: vectors stay as they are."""

from __future__ import annotations

from typing import Literal

from pmmrec.context import BuildContext
from pmmrec.contracts import Nodes
from pmmrec.propagations import Propagation, propagations
from pmmrec.settings import PartConfig


class IdentityConfig(PartConfig):
    """Settings of no propagation; there are none."""

    type: Literal["identity"] = "identity"


@propagations.register("identity", IdentityConfig)
class Identity(Propagation):
    """Vectors of items `(N, D)` and of users stay as they are; every system without a graph has it.

    Example:
        model: {propagation: {type: identity}}
    """

    def __init__(self, config: IdentityConfig, context: BuildContext) -> None:  # noqa: ARG002  # every part is built so
        super().__init__()

    def forward(self, nodes: Nodes) -> Nodes:
        """The same."""
        return nodes
