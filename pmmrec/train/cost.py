"""The cost of a training: trainable parameters, memory, and time."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class TrainingCost:
    """The cost of one training without validation; sizes are those of this process."""

    trainable_parameters: int
    total_parameters: int
    peak_memory_bytes: int | None = None  # of the GPU, or else of the process since its start
    seconds: float = 0.0
    num_epochs: int = 0

    @classmethod
    def of(cls, task: nn.Module) -> TrainingCost:
        """The sizes of a task before training."""
        sizes = [(tensor.numel(), tensor.requires_grad) for tensor in task.parameters()]
        return cls(sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes))

    @property
    def seconds_per_epoch(self) -> float | None:
        return round(self.seconds / self.num_epochs, 3) if self.num_epochs else None

    def words(self) -> str:
        """The share of trainable parameters, for the log."""
        share = self.trainable_parameters / max(1, self.total_parameters)
        return f"learning: {self.trainable_parameters:,} of {self.total_parameters:,} parameters ({share:.2%})"

    def add_epoch(self, seconds: float, device: torch.device) -> None:
        """Add an epoch and the memory that it needed."""
        self.seconds, self.num_epochs = self.seconds + seconds, self.num_epochs + 1
        peak = peak_memory_bytes(device)
        if peak is not None:
            self.peak_memory_bytes = max(peak, self.peak_memory_bytes or 0)


def reset_peak(device: torch.device) -> None:
    """Reset the peak of `peak_memory_bytes` on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """Peak memory of tensors on a GPU, or else of the process since its start; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
