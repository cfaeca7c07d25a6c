"""Tell the target of a position from the targets of all others in the batch (UniSRec, VQRec)."""
# Shapes: B users, L positions, U distinct items, K positions with a target.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective, objectives
from pmmrec.objectives.in_batch import num_targets, told_apart
from pmmrec.objectives.targets import TargetsConfig, TargetStates
from pmmrec.precision import outside_autocast, widened
from pmmrec.requests import View


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
        if self.config.similarity == "cosine":
            unit_KD = F.normalize(widened(targets.query.hidden_KD), dim=1)
            score_KU = unit_KD @ F.normalize(widened(views.items.fused_UD), dim=1).T / self.config.temperature
        else:
            score_KU = views.score(targets.query) / self.config.temperature
        made_K1 = None
        if self.config.synthetic:
            made_K1 = views.score(targets.query, targets.target_K[:, None], stream=View.SYNTHETIC.value)
            made_K1 = made_K1 / self.config.temperature
        return told_apart(score_KU, made_K1, num_targets(views, targets, score_KU.dtype), targets)
