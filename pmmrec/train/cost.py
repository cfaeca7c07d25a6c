"""What a training costs: how many numbers learn, memory, and time."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class TrainingCost:
    """Of one training, without its validation. Sizes are of this process."""

    trainable_parameters: int
    total_parameters: int
    peak_memory_bytes: int | None = None  # of the device; without a GPU, of the process since its start
    seconds: float = 0.0
    num_epochs: int = 0

    @classmethod
    def of(cls, task: nn.Module) -> TrainingCost:
        """The sizes of a task that is about to train."""
        sizes = [(tensor.numel(), tensor.requires_grad) for tensor in task.parameters()]
        return cls(sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes))

    @property
    def seconds_per_epoch(self) -> float | None:
        return round(self.seconds / self.num_epochs, 3) if self.num_epochs else None

    def words(self) -> str:
        """How many numbers learn, for people."""
        share = self.trainable_parameters / max(1, self.total_parameters)
        return f"learning: {self.trainable_parameters:,} of {self.total_parameters:,} parameters ({share:.2%})"

    def add_epoch(self, seconds: float, device: torch.device) -> None:
        """Count an epoch, and the memory that it needed."""
        self.seconds, self.num_epochs = self.seconds + seconds, self.num_epochs + 1
        peak = peak_memory_bytes(device)
        if peak is not None:
            self.peak_memory_bytes = max(peak, self.peak_memory_bytes or 0)


def forget_peak(device: torch.device) -> None:
    """Let the next `peak_memory_bytes` of a GPU be of what comes from now on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory that tensors had on a GPU; elsewhere that the process had since its start. None if not known."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB
