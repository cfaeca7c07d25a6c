"""Tell the clicked items of an impression from the others that were shown with them (news recommendation)."""
# Shapes: B impressions, C candidates.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Candidates, Query, Term, Views
from pmmrec.objectives import Objective, ObjectiveConfig, objectives
from pmmrec.precision import outside_autocast
from pmmrec.requests import Requests, Shown


class ImpressionCEConfig(ObjectiveConfig):
    """Settings of the softmax over the candidates of an impression."""

    type: Literal["impression_ce"] = "impression_ce"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"not_clicked": 1, "temperature": "sqrt_width"})
    not_clicked: int | None = Field(
        None,
        ge=1,
        description="Of each impression so many items that were not clicked, drawn at each visit (NRMS: 4); null: all.",
    )
    temperature: Annotated[float, Field(gt=0)] | Literal["sqrt_width"] = Field(
        1.0, description="Divides scores; sqrt_width: the root of the width."
    )


@objectives.register("impression_ce", ImpressionCEConfig)
class ImpressionCE(Objective):
    """Score each clicked item of an impression above the items that were shown with it and not clicked.

    Eq. 8-9 of NRMS (EMNLP 2019): clicked item i of an impression loses -log exp(s_i) / (exp(s_i) + sum exp(s_j)), j the
    items that were not clicked; other clicked items take no part. NRMS draws four of them for each click; here all of
    them count, or `not_clicked` are drawn for the impression. Scores are those of the state that ranks. Items with
    nothing to read are left out, and so are clicked items beside which nothing else is left.

    Metrics: `chance`, the loss of equal scores; `accuracy`, the share of clicked items that score strictly above all
    that were not clicked.

    Example:
        data: {examples: {type: impressions, history: 50}}
        objectives: {click: {type: impression_ce, not_clicked: 4}}
    """

    def __init__(self, config: ImpressionCEConfig, context: BuildContext) -> None:
        super().__init__()
        self.config, self.request = config, Shown(num_not_clicked=config.not_clicked)
        self.requests = Requests.of(self.request, last_alone=True)
        self.temperature = math.sqrt(context.width) if isinstance(config.temperature, str) else config.temperature

    def forward(self, views: Views) -> Term:
        """Sum over clicked items. ValueError where the views lack the pass or its candidates."""
        of_pass, states = views.read(self.request, "impression_ce")
        if of_pass.candidates is None:
            raise ValueError("impression_ce: the pass holds no candidates")
        with outside_autocast(views.items.fused_UD.device):
            score_BC = views.score(Query.last(states), of_pass.candidates.item_index_BC) / self.temperature
            return _term(score_BC, of_pass.candidates, views.items.is_readable_U)


def _term(score_BC: Tensor, candidates: Candidates, is_readable_U: Tensor) -> Term:
    is_open_BC = candidates.is_shown_BC & is_readable_U[candidates.item_index_BC]
    is_other_BC = is_open_BC & ~candidates.is_clicked_BC
    num_others_B1 = is_other_BC.sum(dim=1, keepdim=True)
    is_counted_BC = is_open_BC & candidates.is_clicked_BC & (num_others_B1 > 0)
    others_BC = torch.where(is_other_BC, score_BC, -math.inf)
    others_BC = torch.where(num_others_B1 > 0, others_BC, 0.0)  # a softmax over nothing has no gradient
    loss_BC = F.softplus(others_BC.logsumexp(dim=1, keepdim=True) - score_BC)
    count = is_counted_BC.sum().to(loss_BC.dtype)
    is_right_BC = is_counted_BC & (score_BC > others_BC.amax(dim=1, keepdim=True))
    chance = (is_counted_BC * num_others_B1.to(loss_BC.dtype).log1p()).sum()
    metrics = {
        "chance": torch.stack((chance, count)),
        "accuracy": torch.stack((is_right_BC.sum().to(loss_BC.dtype), count)),
    }
    return Term(torch.where(is_counted_BC, loss_BC, 0.0).sum(), count, metrics)
