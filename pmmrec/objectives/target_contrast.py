"""Tell the target of a position from the targets of all others in the batch (UniSRec, VQRec)."""
# Shapes: B users, L positions, U distinct items, K positions with a target.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.targets import TargetsConfig, TargetStates
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import View

NO_TARGET = -1


class TargetContrastConfig(TargetsConfig):
    """Settings of the contrast of targets; the temperature is that of UniSRec and VQRec."""

    type: Literal["target_contrast"] = "target_contrast"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {},
        {"targets": "last", "temperature": 0.5},
        {"targets": "masked"},
        {"targets": "last", "synthetic": True},
        {"similarity": "cosine", "temperature": 0.2},
    )
    temperature: float = Field(0.07, gt=0, description="Divides scores.")
    synthetic: bool = Field(
        False,
        description="One more negative at each position: an item that does not exist, made of the target (VQRec).",
    )
    similarity: Literal["scorer", "cosine"] = Field(
        "scorer",
        description="scorer: positions are scored as the model ranks. cosine: by the cosine of state and item, as in "
        "SLMRec, which ranks by dot products.",
    )

    @model_validator(mode="after")
    def _synthetic_items_are_scored(self) -> Self:
        if self.synthetic and self.similarity == "cosine":
            raise ValueError("similarity: synthetic items are scored as the model ranks; leave it out")
        return self


@objectives.register("target_contrast", TargetContrastConfig)
class TargetContrast(Objective):
    """Score the target of a position above the targets of all other positions of the batch.

    The sequence-item task of UniSRec (https://arxiv.org/abs/2206.05941) and, with `synthetic`, of VQRec
    (https://arxiv.org/abs/2210.12316): a cross-entropy over all targets of the step, in which an item is as often a
    negative as it is a target elsewhere. Positions with the same target are left out of the sum, where released codes
    add 1 for each. Differs from the papers: they make an example of every prefix of a history, which `targets: last`
    does of windows; `targets: next` takes all prefixes of a window together. Both papers compare by cosine, which is a
    setting of the scorer, or of this objective alone: SLMRec (https://doi.org/10.1109/TMM.2022.3187556) trains on
    cosines and ranks by dot products. Counted are positions whose target can be read and is told from anything; with
    peers the targets of all processes are there.

    Metrics: `chance`, the loss of equal scores; `accuracy`, the share of positions whose target scores strictly above
    all that it is told from.

    Example:
        objectives: {seq_item: {type: target_contrast, temperature: 0.07, targets: last}}
    """

    def __init__(self, config: TargetContrastConfig, context: BuildContext) -> None:  # noqa: ARG002  # every objective is built so
        super().__init__()
        self.config = config
        self.requests = config.requests(views=(View.SYNTHETIC,) if config.synthetic else ())

    def forward(self, views: Views) -> Term:
        """Sum over positions that count. ValueError where the views lack the pass."""
        with outside_autocast(views.items.fused_UD.device):
            return self._term(views)

    def _term(self, views: Views) -> Term:
        targets = TargetStates.read(views, self.config, "target_contrast")
        target_K, target_K1 = targets.target_K, targets.target_K[:, None]
        if self.config.similarity == "cosine":
            unit_KD = F.normalize(widened(targets.query.hidden_KD), dim=1)
            score_KU = unit_KD @ F.normalize(widened(views.items.fused_UD), dim=1).T / self.config.temperature
        else:
            score_KU = views.score(targets.query) / self.config.temperature
        weight_U = num_targets(views, targets, score_KU.dtype)
        num_negative_K = weight_U.sum() - weight_U[target_K]
        bias_KU = weight_U.log().expand_as(score_KU).scatter(1, target_K1, 0.0)  # -inf: is nobody's target
        is_open_KU = (bias_KU > -math.inf).scatter(1, target_K1, value=False)
        if self.config.synthetic:
            made_K1 = views.score(targets.query, target_K1, stream=View.SYNTHETIC.value) / self.config.temperature
            score_KU, num_negative_K = torch.cat((score_KU, made_K1), dim=1), num_negative_K + 1
            bias_KU, is_open_KU = F.pad(bias_KU, (0, 1)), F.pad(is_open_KU, (0, 1), value=True)
        is_counted_K = targets.is_counted_K & (num_negative_K > 0)
        loss_K = F.cross_entropy(score_KU + bias_KU, target_K, reduction="none")
        loss = torch.where(is_counted_K, loss_K, 0.0).sum()

        best_K = score_KU.detach().masked_fill(~is_open_KU, -math.inf).amax(dim=1)
        is_right_K = is_counted_K & (score_KU.detach().gather(1, target_K1)[:, 0] > best_K)
        count, num_right = is_counted_K.sum().to(loss.dtype), is_right_K.sum().to(loss.dtype)
        chance = torch.where(is_counted_K, num_negative_K.log1p(), 0.0).sum()
        return Term(loss, count, {"chance": torch.stack((chance, count)), "accuracy": torch.stack((num_right, count))})


def num_targets(views: Views, targets: TargetStates, dtype: torch.dtype) -> Tensor:
    """`(U,)`: of how many positions that count, in all processes, each item is the target."""
    query = targets.query
    target_BL = torch.full_like(query.states.is_valid_BL, NO_TARGET, dtype=dtype)
    found_K = torch.where(targets.is_counted_K, targets.target_K, NO_TARGET)
    target_BL = target_BL.index_put((query.user_K, query.position_K), found_K.to(dtype))
    if views.peers is not None:
        target_BL = views.peers.of_all(target_BL)
    target = target_BL.flatten().to(torch.int64)
    none_U = torch.zeros(len(views.items.fused_UD), dtype=dtype, device=target.device)
    return none_U.scatter_add(0, target.clamp(min=0), (target != NO_TARGET).to(dtype))
