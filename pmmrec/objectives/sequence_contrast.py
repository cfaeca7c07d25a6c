"""Tell a window with items left out from those of other users (UniSRec)."""
# Shapes: B users, L inputs of a window, D width, G users of all processes.

from __future__ import annotations

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
from pmmrec.requests import Dropped, NextItems, Requests, View


class SequenceContrastConfig(ObjectiveConfig):
    """Settings of the contrast of sequences; the defaults are those of UniSRec, whose weight beside it is 1e-3."""

    type: Literal["sequence_contrast"] = "sequence_contrast"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"temperature": 0.5, "dropped": {"share": 0.5}},
        {"dropped": {"reworded": 0.5}},
    )
    dropped: Dropped = Field(Dropped(), description="How inputs are left out; equal settings share one pass.")
    temperature: float = Field(0.07, gt=0, description="Divides cosine similarities.")


@objectives.register("sequence_contrast", SequenceContrastConfig)
class SequenceContrast(Objective):
    """Find a user's window with inputs left out among those of the other users of the batch, by their last states.

    The sequence-sequence task of UniSRec (https://arxiv.org/abs/2206.05941): the loss of a user is -log of
    exp(cos(h, h') / temperature) of the own view h' over the sum of all views. Users with the same target are left out
    of the sum, where released code adds 1 for each. Counted are users with a target and another user to tell them from;
    with peers the users of all processes are there.

    A view leaves items out, or with the chance `dropped.reworded` keeps all and reads them by their second text, which
    the item encoder must give (`mixture.reworded`). Differs from released code: it chooses for a whole batch, and reads
    one of five items of such a window so (`dropped.reworded_items: 0.2`).

    Metrics: `chance`, the log of the number of views that are told apart; `accuracy`, the share of users whose own view
    is strictly nearest.

    Example:
        objectives: {views: {type: sequence_contrast, dropped: {share: 0.2}, temperature: 0.07, weight: 1e-3}}
    """

    def __init__(self, config: SequenceContrastConfig, context: BuildContext) -> None:  # noqa: ARG002  # every objective is built so
        super().__init__()
        views = (View.REWORDED,) if config.dropped.reworded else ()
        self.config, self.requests = config, Requests.of(NextItems(), config.dropped, views=views, last_alone=True)

    def forward(self, views: Views) -> Term:
        """Sum over users who count. ValueError where the views lack one of the two passes."""
        of_pass, clean = views.read(NextItems(), "sequence_contrast")
        _, dropped = views.read(self.config.dropped, "sequence_contrast")
        is_counted_B = of_pass.is_target_BL[:, -1]
        with outside_autocast(is_counted_B.device):
            state_BD, view_BD = (F.normalize(widened(one.hidden_BLD[:, -1]), dim=1) for one in (clean, dropped))
            target_B1 = of_pass.target_index_BL[:, -1:].to(view_BD.dtype)
            (view_GD, target_G1), rows = rows_of_all((view_BD, target_B1), is_counted_B, views.peers)
            is_open_BG = rows.is_counted_G & (target_B1 != target_G1.T) | rows.is_own_BG
            score_BG = rows.closed(state_BD @ view_GD.T / self.config.temperature, is_open_BG)
            loss = rows.cross_entropy(score_BG)  # exactly 0, gradient too, for a user alone
        num_open_B = is_open_BG.sum(dim=1)
        is_compared_B = rows.is_counted_B & (num_open_B > 1)
        count = is_compared_B.sum().to(loss.dtype)
        num_right = (rows.is_alone_at_the_top(score_BG) & is_compared_B).sum().to(loss.dtype)
        chance = torch.where(rows.is_counted_B, num_open_B.to(loss.dtype).log(), 0.0).sum()
        return Term(loss, count, {"chance": torch.stack((chance, count)), "accuracy": torch.stack((num_right, count))})
