"""Objectives: what training minimises. They see tensors, never a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Protocol

from pydantic import Field
from torch import nn

from pmmrec.contracts import Term, Views
from pmmrec.family import Family
from pmmrec.requests import LOSSES_OF_ITEMS, Hiding, Requests
from pmmrec.settings import PartConfig

IGNORED = -100  # the target that torch's cross-entropy leaves out


class ObjectiveConfig(PartConfig):
    """Settings that every objective has."""

    weight: float = Field(1.0, gt=0, description="Factor of this objective in the total loss (eq. 12: 1).")


class ItemHeads(Protocol):
    """What an objective may ask of the item encoder before training."""

    def restore(self, hiding: Hiding) -> nn.Module:
        """Let it give the loss of guessing what is hidden of items; the head that guesses, for the objective to own."""
        ...


class Objective(nn.Module, ABC):
    """What training minimises. Built as `part_class(config, context)`; its parameters are used in training only.

    A term's metrics may hold `chance`: the loss of a model that knows nothing, logged beside the first loss.

    Attributes:
        shares_negatives: Whether its negatives must be those that another objective draws.
        requests: What it asks for beyond the vectors of the items: passes over windows, drawn negatives, views.
        reads_targets: Whether it predicts items of the windows. With False it must read no target and no item behind
            the inputs of a pass, and may then use a user encoder that has seen them.
        reads_inputs: Whether it says something of each input by the state at its position, which must have read it.
        reads_fused: Whether it reads fused item vectors, beside states and scores. Where no objective of a task does,
            and none asks for a pass, the parts of the model that make these do not learn.
    """

    shares_negatives: bool = False
    requests: Requests = Requests()
    reads_targets: bool = True
    reads_inputs: bool = False
    reads_fused: bool = True

    @property
    def needs_past(self) -> bool:
        """Whether a user encoder that reads the whole window would see the items that this objective predicts."""
        return self.reads_targets and not all(request.hides_targets for request in self.requests.passes)

    @property
    def reads_vectors(self) -> bool:
        """Whether it reads vectors of items at all, and not only the losses of what was hidden of them."""
        return self.reads_fused or bool(self.requests.passes or self.requests.views - LOSSES_OF_ITEMS)

    def meet(self, encoder: ItemHeads) -> None:
        """Called once, before training, with the item encoder of the run. RecipeError where the two do not fit."""
        del encoder

    @abstractmethod
    def forward(self, views: Views) -> Term:
        """The sum and the count of this objective over one step, in float32 or wider, outside autocast.

        The count depends on windows, requests and on what items have, never on vectors, states or scores: it is asked
        for before anything is encoded. It must run on meta tensors, and the host must not have to wait for a GPU: no
        shape may depend on the numbers in a tensor. The batch knows the places of targets and of inputs; see `Places`.
        """


objectives: Family[Objective] = Family("objective", home=__name__, group="objectives")
