"""Make users and the items they touched predict one another, without negatives (BM3)."""
# Shapes: B users, K positions with a target, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.dropout import Dropout
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.targets import TargetsConfig, TargetStates
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import View


class BootstrapConfig(TargetsConfig):
    """Settings of the bootstrap."""

    type: Literal["bootstrap"] = "bootstrap"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"dropout": 0.0},
        {"dropout": 0.0, "streams": ["text", "image"], "stream_weight": 0.5, "targets": "last"},
    )
    streams: list[str] = Field(
        default_factory=list, description="Streams of items that predict the item and themselves."
    )
    stream_weight: float = Field(2.0, gt=0, description="Factor of what streams predict.")
    dropout: float = Field(0.3, ge=0, lt=1, description="Of what is predicted; BM3 chooses among 0.3 and 0.5.")


@objectives.register("bootstrap", BootstrapConfig)
class Bootstrap(Objective):
    """Turn the vector of a user to that of the item that it touched, and the item's to the user's.

    With x of what a predictor gives and x' of what stands before it, with dropout and without a gradient, a target
    loses

        1 - cos(u, i') + 1 - cos(i, u') + w * sum over streams s of (1 - cos(s, i') + 1 - cos(s, s'))

    (BM3, arXiv 2207.05969, with w 2 as in its released code). There are no negatives and no second network: x' is of
    the same weights. Counted are targets that can be read. It needs a propagation with a predictor; without one x' is
    x with dropout.

    Example:
        model:
          item_encoder:
            type: with_streams
            streams: {text: {features: {content: 384}}, image: {features: {image_content: 512}}}
          user_encoder: {type: user_table}
          propagation: {type: predictor, interactions: {num_layers: 1, adds_items: true}}
        objectives: {bootstrap: {type: bootstrap, streams: [text, image], dropout: 0.3}}
    """

    def __init__(self, config: BootstrapConfig, context: BuildContext) -> None:  # noqa: ARG002  # every part is built so
        super().__init__()
        self.config, self.dropout = config, Dropout(config.dropout)
        self.requests = config.requests(views=(View.NODES,), streams=config.streams)

    def forward(self, views: Views) -> Term:
        """Sum over counted positions. ValueError where the views lack the pass."""
        targets = TargetStates.read(views, self.config, "bootstrap")
        before = None if views.propagated is None else views.propagated.targets
        items = views.items if before is None else before.items
        with outside_autocast(items.fused_UD.device):
            user_KD = wanted_user_KD = widened(targets.query.hidden_KD)
            if before is not None and before.user_MD is not None and views.windows.user_index_B is not None:
                wanted_user_KD = widened(before.user_MD)[views.windows.user_index_B][targets.query.user_K]
            item_KD = widened(views.items.fused_UD)[targets.target_K]
            wanted_item_KD = self._wanted(widened(items.fused_UD)[targets.target_K])
            loss_K = _apart(user_KD, wanted_item_KD) + _apart(item_KD, self._wanted(wanted_user_KD))
            for name in self.config.streams:
                stream_KD = widened(views.items.streams_UD[name])[targets.target_K]
                wanted_KD = self._wanted(widened(items.streams_UD[name])[targets.target_K])
                apart_K = _apart(stream_KD, wanted_item_KD) + _apart(stream_KD, wanted_KD)
                loss_K = loss_K + self.config.stream_weight * apart_K
            loss = torch.where(targets.is_counted_K, loss_K, 0.0).sum()
        return Term(loss, targets.count(loss.dtype))

    def _wanted(self, x_KD: Tensor) -> Tensor:
        dropped_KD: Tensor = self.dropout(x_KD.detach())
        return dropped_KD


def _apart(x_KD: Tensor, wanted_KD: Tensor) -> Tensor:
    """`(K,)`: one minus the cosine."""
    return 1 - (F.normalize(x_KD, dim=1) * F.normalize(wanted_KD, dim=1)).sum(dim=1)
