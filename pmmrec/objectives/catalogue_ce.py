"""Tell the next item from all other items of the catalogue."""
# Shapes: B users, S window positions, L = S - 1, U items of the batch: the catalogue. D width, K counted positions.

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, View, Views
from pmmrec.objectives import Objective, ObjectiveConfig, objectives
from pmmrec.objectives.precision import outside_autocast, widened


class CatalogueCEConfig(ObjectiveConfig):
    """Settings of the full softmax."""

    type: Literal["catalogue_ce"] = "catalogue_ce"
    temperature: Annotated[float, Field(gt=0)] | Literal["sqrt_width"] = Field(
        "sqrt_width", description="Divides dot products; sqrt_width: the root of the width."
    )
    scores_at_once: int = Field(
        1 << 25, ge=1, description="Positions x items whose scores are held at a time; more are done in chunks."
    )


@objectives.register("catalogue_ce", CatalogueCEConfig)
class CatalogueCE(Objective):
    """Cross-entropy of the next item over every item of the run's domains, at every position that has a next item.

    What DAP (eq. 5 of https://arxiv.org/abs/2312.09602) samples from a batch, taken whole: no negative is missing and
    none is drawn too often, so scores tend to log p(item | user), popularity included. All items are encoded in every
    step, so it suits catalogues whose encoding is cheap (ids, a frozen prefix) and large batches. Items with nothing to
    read are neither candidates nor targets, as in ranking.

    Beyond `scores_at_once` the positions are done in chunks that are computed again on the way back: memory is that of
    one chunk, and values and gradients are those of the whole.

    Metrics: `chance`, the log of the catalogue's size; `accuracy`, the share of positions whose next item scores
    strictly above all others.
    """

    needs = frozenset({View.CATALOGUE})

    def __init__(self, config: CatalogueCEConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.temperature = math.sqrt(context.width) if isinstance(config.temperature, str) else config.temperature

    def forward(self, views: Views) -> Term:
        """Sum over positions with a next item."""
        with outside_autocast(views.hidden_BLD.device):
            return self._term(views)

    def _term(self, views: Views) -> Term:
        items_UD = widened(views.items.fused_UD)
        is_readable_U, next_BL = views.items.is_readable_U, views.windows.item_index_BS[:, 1:]
        counts_BL = views.windows.has_next_BL & is_readable_U[next_BL]
        place_U = is_readable_U.cumsum(0) - 1
        items_UD = items_UD[is_readable_U]  # from here on U are the readable items
        next_K = place_U[next_BL[counts_BL]]
        hidden_KD = widened(views.hidden_BLD[counts_BL]) / self.temperature
        num_items, num_positions = items_UD.shape[0], next_K.shape[0]
        at_once = max(1, self.config.scores_at_once // num_items)
        loss = (hidden_KD.sum() + items_UD.sum()) * 0.0  # in the graph also where nobody has a next item
        num_right = loss.new_zeros(())
        for start in range(0, num_positions, at_once):
            some = slice(start, start + at_once)
            inputs = (hidden_KD[some], items_UD, next_K[some])
            if at_once < num_positions:
                chunk_loss, chunk_right = checkpoint(_cross_entropy, *inputs, use_reentrant=False)
            else:
                chunk_loss, chunk_right = _cross_entropy(*inputs)
            loss, num_right = loss + chunk_loss, num_right + chunk_right
        count = loss.detach().new_full((), num_positions)
        metrics = {
            "chance": torch.stack((count * math.log(num_items), count)),
            "accuracy": torch.stack((num_right, count)),
        }
        return Term(loss, count, metrics)


def _cross_entropy(hidden_KD: Tensor, items_UD: Tensor, next_K: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss of some positions, and at how many the next item is alone at the top."""
    score_KU = hidden_KD @ items_UD.T
    loss = F.cross_entropy(score_KU, next_K, reduction="sum")
    with torch.no_grad():
        others_KU = score_KU.scatter(1, next_K[:, None], -math.inf)
        is_right_K = score_KU.gather(1, next_K[:, None])[:, 0] > others_KU.amax(dim=1)
    return loss, is_right_K.sum().to(loss.dtype)
