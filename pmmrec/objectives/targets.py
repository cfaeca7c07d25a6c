"""Choose the positions of a window at which an objective scores items, and the items that are right there."""
# Shapes: B users, L positions, K counted positions.

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from pmmrec.contracts import UserStates, Views, WindowPass
from pmmrec.objectives import ObjectiveConfig
from pmmrec.requests import Masked, NextItems, Others, WindowRequest

Targets = Literal["next", "last", "masked", "each"]


class TargetsConfig(ObjectiveConfig):
    """Settings of every objective that scores a target item at some positions."""

    targets: Targets = Field(
        "next",
        description="next: the next item, at every position (S2S). last: at the last position alone (S2O). masked: the "
        "masked items (BERT4Rec). each: each item, by the others of its window (DSSM variant of NineRec).",
    )
    mask_share: float | None = Field(None, gt=0, le=1, description="masked: chance of each item; null: 0.2.")

    @model_validator(mode="after")
    def _share_is_of_masked(self) -> Self:
        if self.mask_share is not None and self.targets != "masked":
            raise ValueError("mask_share: has no effect without targets: masked; leave it out")
        return self

    @property
    def window(self) -> WindowRequest:
        """The pass over the windows that holds these targets."""
        if self.targets == "each":
            return Others()
        if self.targets != "masked":
            return NextItems()
        return Masked() if self.mask_share is None else Masked(share=self.mask_share)


def read_targets(views: Views, config: TargetsConfig, objective: str) -> tuple[WindowPass, UserStates, Tensor]:
    """The pass that holds the targets, its states, and which positions `(B, L)` have a target that counts.

    A target with nothing to read does not: no ranking holds it.
    """
    of_pass, states = views.read(config.window, objective)
    is_target_BL = of_pass.is_last_target_BL if config.targets == "last" else of_pass.is_target_BL
    return of_pass, states, is_target_BL & views.items.is_readable_U[of_pass.target_index_BL]
