"""The interface through which the training loop drives a model, whole or distributed over processes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

from torch import Tensor

from pmmrec.contracts import Batch
from pmmrec.train.snapshot import TrainerState


class StepOptimizer(Protocol):
    """An optimizer as a strategy prepared it."""

    optimizer: Any  # the one that is wrapped

    @property
    def step_was_skipped(self) -> bool:
        """Whether the last step was left out because a gradient was not finite."""
        ...

    def step(self) -> None: ...
    def zero_grad(self) -> None: ...


class Strategy(ABC):
    """A task on all processes: replicated, or sharded.

    Every process must call each method, with the same arguments except the batch and the loss. Gradients are means over
    processes, whatever the strategy.
    """

    trainer_state: TrainerState
    optimizer: StepOptimizer
    can_differentiate_twice = True  # whether gradients can be taken twice from one forward

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The figures of the task for this process's batch, in the precision of the run."""

    @abstractmethod
    def gradient_sync(self, *, is_last: bool) -> AbstractContextManager[None]:
        """Wrap forward and backward of one part of a step; gradients are exchanged with the last part only."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add this process's gradients."""

    @abstractmethod
    def clip_gradients(self) -> Tensor | float | None:
        """Scale all gradients so that their norm is at most the recipe's `clip_norm`; call it once before each step.

        Returns the norm before scaling, or None where the optimizer clips as part of its step (DeepSpeed).
        """

    @abstractmethod
    def whole_state(self) -> dict[str, Tensor]:
        """The state dict of the task on the CPU of the main process; empty in the others."""

    @abstractmethod
    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the run, for computations outside `forward`."""

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """Wrap calls to parts of the task that do not go through `forward`, such as validation."""
        return nullcontext()
