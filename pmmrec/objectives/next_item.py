"""Tell the next item from items of other users (PMMRec's DAP, eq. 5)."""
# Shapes: B users, S window positions, L = S - 1, U distinct items, D width, K counted positions.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import Query, Term, Views
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.negatives import Columns, NegativeRule, Negatives
from pmmrec.objectives.targets import TargetsConfig, read_targets
from pmmrec.precision import outside_autocast
from pmmrec.requests import Requests, View


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
        self.requests = Requests.of(config.window, views=() if config.logq == "none" else (View.POPULARITY,))

    def forward(self, views: Views) -> Term:
        """Sum over counted positions. ValueError when `logq` asks for a popularity that the views lack."""
        with outside_autocast(views.items.fused_UD.device):
            return self._term(views)

    def _term(self, views: Views) -> Term:
        of_pass, states, is_target_BL = read_targets(views, self.config, "next_item")
        dtype = torch.promote_types(views.items.fused_UD.dtype, torch.float32)
        columns = Columns.of(views.windows, len(views.items.fused_UD), views.num_slots_U)
        negatives = columns.negatives(self.config.negatives, dtype, views.items.is_readable_U)
        is_counted_BL = is_target_BL & negatives.has_any_B[:, None]
        query = Query.at(states, is_counted_BL)
        user_K, next_K = query.user_K, of_pass.target_index_BL[is_counted_BL]

        score_KU = views.score(query) / self.temperature
        score_K = score_KU.gather(1, next_K[:, None])[:, 0]
        positive_K, negative_bias_BU = score_K, negatives.log_weight_BU
        if self.config.logq != "none":
            log_q_U = self._log_q(views).to(dtype)
            # not a plain difference: an item that the sampler never shows has log q = -inf and weight 0
            negative_bias_BU = torch.where(negatives.is_negative_BU, negative_bias_BU - log_q_U, -math.inf)
            if self.config.logq == "all_columns":
                positive_K = score_K - log_q_U[next_K]
        negative_K = (score_KU + negative_bias_BU[user_K]).logsumexp(dim=1)
        loss = -F.logsigmoid(positive_K - negative_K).sum()  # eq. 5: log(1 + exp(negative - positive))
        return _term_of(loss, score_K.detach(), score_KU.detach(), negatives, user_K)

    def _log_q(self, views: Views) -> Tensor:
        if views.log_q_U is None:
            raise ValueError(
                f"next_item: logq {self.config.logq!r} needs views.log_q_U, found None; give it or use none"
            )
        return views.log_q_U


def _term_of(loss: Tensor, score_K: Tensor, score_KU: Tensor, negatives: Negatives, user_K: Tensor) -> Term:
    count = loss.new_full((), user_K.shape[0])
    best_negative_K = score_KU.masked_fill(~negatives.is_negative_BU[user_K], -math.inf).amax(dim=1)
    num_right = (score_K > best_negative_K).sum().to(loss.dtype)
    chance = negatives.weight_BU.sum(dim=1).log1p()[user_K].sum()
    metrics = {"chance": torch.stack((chance, count)), "accuracy": torch.stack((num_right, count))}
    return Term(loss, count, metrics)
