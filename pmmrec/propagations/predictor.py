"""Vectors along interactions, and above them a linear layer whose output ranks (BM3)."""
# Shapes: M users, N items, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from pmmrec.context import BuildContext
from pmmrec.contracts import Nodes
from pmmrec.precision import outside_autocast, widened
from pmmrec.propagations import Propagation, propagations
from pmmrec.propagations.lightgcn import LightGCN, LightGCNConfig
from pmmrec.settings import PartConfig


class PredictorConfig(PartConfig):
    """Settings of a propagation with a predictor."""

    type: Literal["predictor"] = "predictor"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"interactions": {"adds_items": False, "num_layers": 1}})
    interactions: LightGCNConfig = Field(
        default_factory=lambda: LightGCNConfig(num_layers=2, adds_items=True),
        description="How vectors are passed along interactions.",
    )


@propagations.register("predictor", PredictorConfig)
class Predictor(Propagation):
    """Pass vectors along interactions, and give one linear layer's view of users, items and streams.

    The vectors that rank are `W h + b` of what the graph gave, with one W for users and items (BM3, arXiv 2207.05969);
    streams, where there are any, pass the same layer. What stood before it is kept as `Nodes.targets`, which the
    objective `bootstrap` compares with.

    Example:
        model:
          user_encoder: {type: user_table}
          propagation: {type: predictor, interactions: {num_layers: 1, adds_items: true}}
    """

    reads_graph = True

    def __init__(self, config: PredictorConfig, context: BuildContext) -> None:
        super().__init__()
        self.interactions = LightGCN(config.interactions, context)
        self.graph = self.interactions.graph
        self.linear = nn.Linear(context.width, context.width)
        nn.init.xavier_normal_(self.linear.weight)

    def begin_epoch(self, epoch: int) -> None:
        """Draw the edges of the epoch."""
        self.interactions.begin_epoch(epoch)

    def forward(self, nodes: Nodes) -> Nodes:
        """Vectors of all items and users. ValueError where they are not those of the graph."""
        targets: Nodes = self.interactions(nodes)
        items, user_MD = targets.items, targets.user_MD
        with outside_autocast(items.fused_UD.device):
            streams_UD = {name: self.linear(widened(x_UD)) for name, x_UD in items.streams_UD.items()}
            items = replace(items, fused_UD=self.linear(items.fused_UD), streams_UD=streams_UD)
            user_MD = None if user_MD is None else self.linear(user_MD)
        return Nodes(items, user_MD, targets)
