"""Choose the positions of a window at which an objective scores items, and the items that are right there."""
# Shapes: B users, L positions, K positions with a target, U distinct items, C negatives of a target.

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from typing_extensions import Self

from pmmrec.contracts import Places, Query, Views, WindowPass
from pmmrec.objectives import ObjectiveConfig
from pmmrec.requests import DrawnNegatives, Masked, NextItems, Others, Requests, View, WindowRequest

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

    def requests(
        self, negatives: DrawnNegatives | None = None, views: Iterable[View] = (), streams: Iterable[str] = ()
    ) -> Requests:
        """The pass with these targets, with `negatives` drawn for them, views, and streams of items."""
        is_last = self.targets == "last"
        return Requests.of(self.window, negatives=negatives, views=views, last_alone=is_last, streams=streams)


@dataclass(frozen=True)
class TargetStates:
    """The states at which an objective scores items, and the item that is right at each."""

    of_pass: WindowPass
    places: Places  # K positions of the windows
    query: Query  # their states; those of a batch's targets, whether they count or not
    target_K: Tensor  # int64, places in U; 0 where there is none
    is_counted_K: Tensor  # bool; False where there is no target, or one with nothing to read, which no ranking holds

    @classmethod
    def read(cls, views: Views, config: TargetsConfig, objective: str) -> TargetStates:
        """What the views hold of the targets that a configuration asks for. ValueError where they lack the pass."""
        of_pass, states = views.read(config.window, objective)
        is_readable_U = views.items.is_readable_U
        if config.targets == "last":
            last, target_K = Places.last(of_pass.is_target_BL), of_pass.target_index_BL[:, -1]
            is_counted_K = of_pass.is_target_BL[:, -1] & is_readable_U[target_K]
            return cls(of_pass, last, Query.last(states), target_K, is_counted_K)
        places = of_pass.target_places
        target_K = places.of(of_pass.target_index_BL)
        return cls(of_pass, places, Query.at(states, places), target_K, is_readable_U[target_K])

    def at(self, x_BL: Tensor) -> Tensor:
        """`(B, L, ...)` -> `(K, ...)`: what stands at these positions."""
        return self.places.of(x_BL)

    def negatives(self, drawn: DrawnNegatives, objective: str) -> Tensor:
        """The negatives of each target, `(K, C)` places in U. ValueError where the pass lacks them."""
        if drawn not in self.of_pass.negative_index_BLC:
            raise ValueError(f"{objective}: the pass holds no negatives {drawn!r}")
        return self.at(self.of_pass.negative_index_BLC[drawn])

    def count(self, dtype: torch.dtype) -> Tensor:
        """How many positions count, as a number of this type."""
        return self.is_counted_K.sum().to(dtype)
