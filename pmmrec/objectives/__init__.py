"""Objectives: what training minimises. They see tensors, never a model."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pydantic import Field
from torch import nn

from pmmrec.contracts import Term, View, Views
from pmmrec.family import Family
from pmmrec.settings import PartConfig


class ObjectiveConfig(PartConfig):
    """Settings that every objective has."""

    weight: float = Field(1.0, gt=0, description="Factor of this objective in the total loss (eq. 12: 1).")


class Objective(nn.Module, ABC):
    """Built as `part_class(config, context)`; its parameters, if any, are used in pretraining only.

    A term's metrics may hold `chance`: the loss of a model that knows nothing, logged beside the first loss.
    """

    needs: frozenset[View] = frozenset()

    @abstractmethod
    def forward(self, views: Views) -> Term:
        """The sum and the count of this objective over one step, in float32 or wider, outside autocast."""


objectives: Family[Objective] = Family("objective", home=__name__)
