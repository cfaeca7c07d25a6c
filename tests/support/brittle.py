"""A loss, or its gradient alone, that is NaN whenever a test wants it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from pmmrec.contracts import Term, Views
from pmmrec.objectives import Objective
from pmmrec.requests import NextItems, Requests
from pmmrec.train.task import TrainingTask


class Brittle(Objective):
    """Adds 0 to the loss; while it is broken NaN, or NaN to its gradient alone."""

    requests = Requests.of(NextItems())

    def __init__(self, breaks: Literal["loss", "gradient"]) -> None:
        super().__init__()
        self._breaks, self.is_broken = breaks, False

    def forward(self, views: Views) -> Term:
        zero = (views.states[NextItems()].hidden_BLD * 0).sum()
        if self.is_broken:
            zero = zero.sqrt() if self._breaks == "gradient" else zero * math.nan
        return Term(zero, torch.ones_like(zero))


def make_brittle(
    task: TrainingTask, breaks_now: Callable[[], bool], breaks: Literal["loss", "gradient"] = "loss"
) -> Brittle:
    """Give a task such a loss; `breaks_now` is asked once before every forward."""
    term = Brittle(breaks)
    task.objectives["brittle"], task.weights["brittle"] = term, 1.0

    def before(_module: nn.Module, _arguments: object) -> None:
        term.is_broken = breaks_now()

    task.register_forward_pre_hook(before)
    return term
