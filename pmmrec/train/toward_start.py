"""Pull weights toward those that a checkpoint gave, while they learn (L2-SP)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.train.optim import parameter_paths
from pmmrec.train.task import TrainingTask


class TowardStart:
    """Decay toward the weights that a training started from, in place of zero.

    L2-SP (https://arxiv.org/abs/1802.01483) adds strength / 2 |w - w0|^2 to the loss, for what a checkpoint gave. Adam
    would scale such a gradient by its moments, so it is decoupled here as AdamW does with weight decay:
    w <- w - rate strength (w - w0), after each step, by the rate of the parameter. The paper lets fresh weights decay
    to zero; that is `train.optimizer.parts.PATH.weight_decay`, and `weight_decay` still draws all others to zero.

    Raises RecipeError where no part comes from a checkpoint, and where processes hold shards of the weights.

    Example:
        train: {toward_start: 0.1, optimizer: {weight_decay: 0}}
    """

    def __init__(self, strength: float | None, task: TrainingTask, optimizer: Optimizer, spread: Spread) -> None:
        self._strength, self._optimizer, self._start = strength or 0.0, optimizer, dict[int, Tensor]()
        if strength is None:
            return
        if not task.loaded:
            raise RecipeError("train.toward_start: has no effect, no part comes from a checkpoint; leave it out")
        if spread not in (Spread.ONE, Spread.DDP):
            raise RecipeError(
                f"train.toward_start: needs whole weights in every process, and {spread.value} shards them; leave it "
                "out, or train in one process or under DDP"
            )
        for path, weight in parameter_paths(task).items():
            if path.split(".")[0] in task.loaded:
                self._start[id(weight)] = weight.detach().clone()

    @torch.no_grad()
    def pull(self, is_held: Tensor) -> None:
        """Draw the weights that learned in this step; `is_held`, a 0-dim bool: whether the step changed nothing."""
        for group in self._optimizer.param_groups if self._start else ():
            share = group["lr"] * self._strength
            for weight in group["params"]:
                start = self._start.get(id(weight))
                if start is not None and weight.grad is not None:
                    weight.lerp_(start, share * (~is_held).to(weight))
