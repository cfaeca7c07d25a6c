"""Score targets above negatives that were drawn for them (BCE as in SASRec, BPR)."""
# Shapes: B users, L positions, K positions with a target, C negatives of a target.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.targets import TargetsConfig, TargetStates
from pmmrec.precision import outside_autocast
from pmmrec.requests import DrawnNegatives


class DrawnConfig(TargetsConfig):
    """Settings of an objective whose negatives are drawn."""

    negatives: DrawnNegatives = Field(DrawnNegatives(), description="How negatives are drawn for every target.")
    temperature: float = Field(
        1.0, gt=0, description="Divides scores. Cosines need one far below 1: they differ by 2 at most."
    )
    stream: str | None = Field(
        None, description="The stream of items whose vectors are scored (FREEDOM); null: the vectors that rank."
    )


class BCEConfig(DrawnConfig):
    """Settings of the binary cross-entropy."""

    type: Literal["bce"] = "bce"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"targets": "masked", "negatives": {"count": 3}},
        {"targets": "last"},
        {"targets": "each"},
        {"temperature": 2.0},
    )


class BPRConfig(DrawnConfig):
    """Settings of BPR."""

    type: Literal["bpr"] = "bpr"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"targets": "last", "negatives": {"count": 3}, "temperature": 2.0},
        {"stream": "text"},
    )


class _Drawn(Objective):
    """What BCE and BPR share: targets and drawn negatives are scored, and the scores make a loss.

    Items with nothing to read are neither targets nor negatives, as in ranking.
    """

    def __init__(self, config: DrawnConfig, context: BuildContext) -> None:  # noqa: ARG002  # every part is built so
        super().__init__()
        self.config = config
        streams = () if config.stream is None else (config.stream,)
        self.requests = config.requests(negatives=config.negatives, streams=streams)

    def forward(self, views: Views) -> Term:
        """Sum over counted positions. ValueError where the views lack the pass or its negatives."""
        targets = TargetStates.read(views, self.config, self.config.type)
        negative_KC = targets.negatives(self.config.negatives, self.config.type)
        target_K1, is_counted_K = targets.target_K[:, None], targets.is_counted_K
        with outside_autocast(target_K1.device):
            score_KC = views.score(targets.query, torch.cat((target_K1, negative_KC), dim=1), self.config.stream)
            score_KC = score_KC / self.config.temperature
            score_K1, score_KC = score_KC[:, :1], score_KC[:, 1:]
            loss = torch.where(is_counted_K, self._loss(score_K1, score_KC), 0.0).sum()
        count = targets.count(loss.dtype)
        num_right = ((score_K1 > score_KC).all(dim=1) & is_counted_K).sum().to(loss.dtype)
        equal_C = score_KC.new_zeros((1, score_KC.shape[1]))
        chance = count * self._loss(equal_C[:, :1], equal_C)[0]
        return Term(loss, count, {"chance": torch.stack((chance, count)), "accuracy": torch.stack((num_right, count))})

    def _loss(self, score_K1: Tensor, score_KC: Tensor) -> Tensor:
        """`(K,)`: the loss of each position."""
        raise NotImplementedError


@objectives.register("bce", BCEConfig)
class BCE(_Drawn):
    """Say yes to the target and no to drawn negatives.

    The loss of a position is `-log sigmoid(s_target) - mean over negatives of log sigmoid(-s_negative)`, as in SASRec
    (arXiv 1808.09781) with one negative; in papers that take one mean over both it is half as large (`weight: 0.5`).

    Scores are divided by `temperature`. Those of the scorer `dot` with `similarity: cosine` lie between -1 and 1, and
    with the default of 1.0 even the best of them leave a loss of 0.63: VQRec by this loss needs a temperature such as
    0.07.

    Example:
        objectives: {bce: {type: bce, negatives: {count: 1, by: uniform}}}
    """

    def _loss(self, score_K1: Tensor, score_KC: Tensor) -> Tensor:
        return F.softplus(-score_K1)[:, 0] + F.softplus(score_KC).mean(dim=1)


@objectives.register("bpr", BPRConfig)
class BPR(_Drawn):
    """Score the target above each drawn negative.

    The loss of a position is `-mean over negatives of log sigmoid(s_target - s_negative)` (arXiv 1205.2618). Released
    codes add 1e-6 inside the logarithm; here it is exact. NineRec's BERT4Rec over images divides the sum over masked
    items by users instead of by masked items, so that its loss is larger by the masked items of a user.

    With `stream` items are scored by vectors that no ranking reads, as FREEDOM (arXiv 2211.06924) does with those of
    texts and of images.

    Example:
        objectives: {bpr: {type: bpr, negatives: {count: 1, by: uniform}}}
    """

    def _loss(self, score_K1: Tensor, score_KC: Tensor) -> Tensor:
        return F.softplus(score_KC - score_K1).mean(dim=1)
