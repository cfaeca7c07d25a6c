"""Tell a window with items left out from those of other users (UniSRec)."""
# Shapes: B users, L inputs of a window, D width, A users who count, G those of all processes.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective, ObjectiveConfig, objectives
from pmmrec.objectives.peers import rows_of_all
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import Dropped, NextItems, Requests


class SequenceContrastConfig(ObjectiveConfig):
    """Settings of the contrast of sequences; the defaults are those of UniSRec, whose weight beside it is 1e-3."""

    type: Literal["sequence_contrast"] = "sequence_contrast"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({}, {"temperature": 0.5, "dropped": {"share": 0.5}})
    dropped: Dropped = Field(Dropped(), description="How inputs are left out; equal settings share one pass.")
    temperature: float = Field(0.07, gt=0, description="Divides cosine similarities.")


@objectives.register("sequence_contrast", SequenceContrastConfig)
class SequenceContrast(Objective):
    """Find a user's window with inputs left out among those of the other users of the batch, by their last states.

    The sequence-sequence task of UniSRec (https://arxiv.org/abs/2206.05941), for its view without some items: the loss
    of a user is -log of exp(cos(h, h') / temperature) of the own view h' over the sum of all views. Users with the same
    target are left out of the sum, where released code adds 1 for each. Counted are users with a target and another
    user to tell them from; with peers the users of all processes are there.

    Metrics: `chance`, the log of the number of views that are told apart; `accuracy`, the share of users whose own view
    is strictly nearest.

    Example:
        objectives: {views: {type: sequence_contrast, dropped: {share: 0.2}, temperature: 0.07, weight: 1e-3}}
    """

    def __init__(self, config: SequenceContrastConfig, context: BuildContext) -> None:  # noqa: ARG002  # every objective is built so
        super().__init__()
        self.config, self.requests = config, Requests.of(NextItems(), config.dropped)

    def forward(self, views: Views) -> Term:
        """Sum over users who count. ValueError where the views lack one of the two passes."""
        of_pass, clean = views.read(NextItems(), "sequence_contrast")
        _, dropped = views.read(self.config.dropped, "sequence_contrast")
        is_counted_B = of_pass.is_target_BL[:, -1]
        with outside_autocast(is_counted_B.device):
            state_BD, view_BD = (F.normalize(widened(one.hidden_BLD[:, -1]), dim=1) for one in (clean, dropped))
            target_B1 = of_pass.target_index_BL[:, -1:].to(view_BD.dtype)
            (view_GD, target_G1), own_A = rows_of_all((view_BD, target_B1), is_counted_B, views.peers)
            is_own_AG = own_A[:, None] == torch.arange(len(view_GD), device=own_A.device)
            is_open_AG = is_own_AG | (target_B1[is_counted_B] != target_G1.T)
            score_AG = state_BD[is_counted_B] @ view_GD.T / self.config.temperature
            score_AG = score_AG.masked_fill(~is_open_AG, -math.inf)
            loss = F.cross_entropy(score_AG, own_A, reduction="sum")  # exactly 0, gradient too, for a user alone
        num_open_A = is_open_AG.sum(dim=1)
        count = (num_open_A > 1).sum().to(loss.dtype)
        is_nearest_A = ((score_AG.gather(1, own_A[:, None]) > score_AG) | is_own_AG).all(dim=1)
        num_right = (is_nearest_A & (num_open_A > 1)).sum().to(loss.dtype)
        chance = num_open_A.to(loss.dtype).log().sum()
        return Term(loss, count, {"chance": torch.stack((chance, count)), "accuracy": torch.stack((num_right, count))})
