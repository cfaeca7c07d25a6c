"""Average the weights over the steps of a training; the averaged ones are validated and kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.launch import Spread
from pmmrec.settings import Config


class AverageConfig(Config):
    """Settings of weight averaging, such as `train.average: {decay: 0.99}`."""

    type: Literal["ema"] = Field("ema", description="ema: exponential moving average.")
    decay: float = Field(
        0.999, gt=0, lt=1, description="Share of the average that a step leaves; smaller in the first steps."
    )


class Average:
    """The exponential moving average of the weights that learn.

    After step t the average moves towards the weights: a <- d a + (1 - d) w, with d = min(decay, (1 + t) / (10 + t)),
    so that the first weights are soon forgotten (the warm-up of timm and of TensorFlow's ExponentialMovingAverage). It
    begins as the first weights, and training itself never reads it. Buffers, such as batch statistics, are those of the
    latest step. It takes the memory of the weights that learn once more. Without settings it does nothing.

    Raises RecipeError where processes hold shards of the weights.

    Example:
        train: {average: {type: ema, decay: 0.99}}
    """

    def __init__(self, config: AverageConfig | None, task: nn.Module, spread: Spread) -> None:
        if config is not None and spread not in (Spread.ONE, Spread.DDP):
            raise RecipeError(
                f"train.average: needs whole weights in every process, and {spread.value} shards them; leave it out, "
                "or train in one process or under DDP"
            )
        self._config = config
        learning = [] if config is None else [pair for pair in task.named_parameters() if pair[1].requires_grad]
        self._weights = dict(learning)
        self._average = {name: weight.detach().clone() for name, weight in learning}

    def update(self, step: int) -> None:
        """Take the weights after a step, counted from 1, into the average."""
        if self._config is None:
            return
        decay = min(self._config.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_(list(self._average.values()), list(self._weights.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the average in place of the weights; the weights come back afterwards, to the bit."""
        kept = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._put(self._average)
        try:
            yield
        finally:
            self._put(kept)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The average by the names of the weights; empty where nothing is averaged."""
        return self._average

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue with a kept average. CheckpointError where it is of other weights."""
        if tensors.keys() != self._average.keys():
            odd = min(tensors.keys() ^ self._average.keys())
            raise CheckpointError(f"state: averages other weights (train.average), such as {odd}; begin another run")
        for name, tensor in tensors.items():
            self._average[name].copy_(tensor)

    def _put(self, tensors: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.copy_(tensors[name])
