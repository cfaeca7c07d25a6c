"""Tell the next item from all other items of the catalogue."""
# Shapes: B users, S window positions, U items of the batch: the catalogue. D width, K positions with a target.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from pmmrec.context import BuildContext
from pmmrec.contracts import Query, Term, Views
from pmmrec.objectives import IGNORED, Objective, objectives
from pmmrec.objectives.targets import TargetsConfig, TargetStates
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import View


class CatalogueCEConfig(TargetsConfig):
    """Settings of the full softmax."""

    type: Literal["catalogue_ce"] = "catalogue_ce"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"targets": "masked"},
        {"targets": "last"},
        {"targets": "each"},
        {"scores_at_once": 10},
    )
    temperature: Annotated[float, Field(gt=0)] | Literal["sqrt_width"] = Field(
        "sqrt_width", description="Divides scores; sqrt_width: the root of the width."
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

    Example:
        objectives: {all: {type: catalogue_ce, temperature: sqrt_width, targets: next}}
    """

    def __init__(self, config: CatalogueCEConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.requests = config.requests(views=(View.CATALOGUE,))
        self.temperature = math.sqrt(context.width) if isinstance(config.temperature, str) else config.temperature

    def forward(self, views: Views) -> Term:
        """Sum over positions with a next item."""
        with outside_autocast(views.items.fused_UD.device):
            return self._term(views)

    def _term(self, views: Views) -> Term:
        targets = TargetStates.read(views, self.config, "catalogue_ce")
        is_readable_U, query = views.items.is_readable_U, targets.query
        target_K = torch.where(targets.is_counted_K, targets.target_K, IGNORED)
        num_items, num_positions = len(is_readable_U), len(query)
        at_once = max(1, self.config.scores_at_once // num_items)
        # in the graph also where nobody has a target
        loss = (widened(query.hidden_KD).sum() + widened(views.items.fused_UD).sum()) * 0.0
        num_right = loss.new_zeros(())
        closed_U = torch.where(is_readable_U, 0.0, -math.inf).to(loss.dtype)

        def cross_entropy(some: Query, target_k: Tensor) -> tuple[Tensor, Tensor]:
            score_kU = views.score(some)
            if self.temperature != 1:  # a copy of all scores
                score_kU = score_kU / self.temperature
            return _cross_entropy(score_kU + closed_U, target_k)

        for start in range(0, num_positions, at_once):
            chunk = slice(start, start + at_once)
            inputs = (query[chunk], target_K[chunk])
            if at_once < num_positions:
                chunk_loss, chunk_right = checkpoint(cross_entropy, *inputs, use_reentrant=False)
            else:
                chunk_loss, chunk_right = cross_entropy(*inputs)
            loss, num_right = loss + chunk_loss, num_right + chunk_right
        count = targets.count(loss.dtype)
        chance = count * is_readable_U.sum().to(count.dtype).log()
        metrics = {"chance": torch.stack((chance, count)), "accuracy": torch.stack((num_right, count))}
        return Term(loss, count, metrics)


def _cross_entropy(score_KU: Tensor, target_K: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss of some positions, and at how many the target is alone at the top."""
    loss = F.cross_entropy(score_KU, target_K, reduction="sum", ignore_index=IGNORED)
    with torch.no_grad():
        own_K1 = score_KU.gather(1, target_K.clamp(min=0)[:, None])
        # bytes: torch takes twice as long to add up bool
        is_alone_K = (score_KU >= own_K1).view(torch.uint8).sum(dim=1, dtype=torch.int32) == 1
        num_right = (is_alone_K & (target_K != IGNORED)).sum()
    return loss, num_right.to(loss.dtype)
