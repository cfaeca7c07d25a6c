"""Tell the next item from items of other users (PMMRec's DAP, eq. 5)."""
# Shapes: B users, S window positions, L = S - 1, U distinct items, D width, K positions with a target.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.negatives import Columns, NegativeRule, Negatives
from pmmrec.objectives.targets import TargetsConfig, TargetStates
from pmmrec.precision import outside_autocast
from pmmrec.requests import View


class NextItemConfig(TargetsConfig):
    """Settings of DAP."""

    type: Literal["next_item"] = "next_item"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"negatives": "other_users", "logq": "all_columns", "temperature": "sqrt_width"},
        {"targets": "last"},
        {"targets": "masked"},
        {"targets": "each"},
    )
    negatives: NegativeRule = Field(
        "unseen",
        description="unseen: batch items outside the user's window. other_users: all slots of others (eq. 5).",
    )
    temperature: Annotated[float, Field(gt=0)] | Literal["sqrt_width"] = Field(
        1.0, description="Divides scores; the paper has none (1.0). sqrt_width: the root of the width."
    )
    logq: Literal["none", "all_columns", "negatives_only"] = Field(
        "none",
        description="Whose scores lose the log of how often the sampler shows an item; all_columns: released code.",
    )


@objectives.register("next_item", NextItemConfig)
class NextItem(Objective):
    """Score the next item above the negatives, at every position that has a next item.

    Eq. 5 of https://arxiv.org/abs/2312.09602, its sum over slots done over distinct items: the loss of a position is
    log(1 + sum_u W_bu exp(s_u - s_next)), W_bu the slots in which item u is a negative of user b. The next item itself
    weighs 1 however often it stands in the batch; under `other_users` its copies at other users are negatives.
    Positions of users without negatives are not counted. Items with nothing to read are neither targets nor negatives.

    Metrics: `chance`, the loss of equal scores; `accuracy`, the share of positions whose next item scores, before the
    log q correction, strictly above every negative (under `other_users` a copy of it ties, and so fails it).

    Example:
        objectives: {dap: {type: next_item, negatives: unseen, temperature: sqrt_width}}
    """

    def __init__(self, config: NextItemConfig, context: BuildContext) -> None:
        super().__init__()
        self.config = config
        self.temperature = math.sqrt(context.width) if isinstance(config.temperature, str) else config.temperature
        self.requests = config.requests(views=() if config.logq == "none" else (View.POPULARITY,))

    def forward(self, views: Views) -> Term:
        """Sum over counted positions. ValueError when `logq` asks for a popularity that the views lack."""
        with outside_autocast(views.items.fused_UD.device):
            return self._term(views)

    def _term(self, views: Views) -> Term:
        targets = TargetStates.read(views, self.config, "next_item")
        dtype = torch.promote_types(views.items.fused_UD.dtype, torch.float32)
        columns = Columns.of(views.windows, len(views.items.fused_UD), views.num_slots_U)
        negatives = columns.negatives(self.config.negatives, dtype, views.items.is_readable_U)
        user_K, next_K = targets.query.user_K, targets.target_K
        is_counted_K = targets.is_counted_K & negatives.has_any_B[user_K]

        # The next item joins the negatives, at its own column: a softmax over all of them is one pass over the scores.
        negative_bias_BU, positive_bias_K1 = self._biases(views, negatives, next_K)
        bias_KU = negative_bias_BU.index_select(0, user_K)
        next_bias_K1 = torch.logaddexp(bias_KU.gather(1, next_K[:, None]), positive_bias_K1)
        bias_KU.scatter_(1, next_K[:, None], next_bias_K1)
        score_KU = views.score(targets.query)
        loss_K = F.cross_entropy(bias_KU.add_(score_KU, alpha=1 / self.temperature), next_K, reduction="none")
        loss_K = loss_K + (next_bias_K1 - positive_bias_K1)[:, 0]
        loss = torch.where(is_counted_K, loss_K, 0.0).sum()
        return Term(loss, *_figures(score_KU.detach(), next_K, negatives, user_K, is_counted_K))

    def _biases(self, views: Views, negatives: Negatives, next_K: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to scores of negatives, `(B, U)`, and of next items, `(K, 1)`."""
        positive_bias_K1 = negatives.weight_BU.new_zeros((len(next_K), 1))
        if self.config.logq == "none":
            return negatives.log_weight_BU, positive_bias_K1
        dtype = positive_bias_K1.dtype
        # an item that the sampler never shows has weight 0 and log q = -inf, of which no difference could be taken
        log_q_U = self._log_q(views).to(dtype).clamp(min=torch.finfo(dtype).min)
        if self.config.logq == "all_columns":
            positive_bias_K1 = -log_q_U[next_K, None]
        return negatives.log_weight_BU - log_q_U, positive_bias_K1

    def _log_q(self, views: Views) -> Tensor:
        if views.log_q_U is None:
            raise ValueError(
                f"next_item: logq {self.config.logq!r} needs views.log_q_U, found None; give it or use none"
            )
        return views.log_q_U


def _figures(
    score_KU: Tensor, next_K: Tensor, negatives: Negatives, user_K: Tensor, is_counted_K: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The count, and the metrics."""
    count = is_counted_K.sum().to(score_KU.dtype)
    closed_BU = torch.where(negatives.is_negative_BU, 0.0, -math.inf).to(score_KU.dtype)
    best_negative_K = closed_BU.index_select(0, user_K).add_(score_KU).amax(dim=1)
    is_right_K = score_KU.gather(1, next_K[:, None])[:, 0] > best_negative_K
    num_right = (is_counted_K & is_right_K).sum().to(score_KU.dtype)
    chance_K = negatives.weight_BU.sum(dim=1).log1p()[user_K]
    chance = torch.where(is_counted_K, chance_K, 0.0).sum()
    return count, {"chance": torch.stack((chance, count)), "accuracy": torch.stack((num_right, count))}
