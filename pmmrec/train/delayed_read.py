"""Read a few numbers of each step one step later, so that the host never waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class DelayedRead:
    """Holds the numbers of a step until the next one, when the device has work to do while they are read."""

    def __init__(self) -> None:
        self._before: tuple[Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, fresh: Tensor) -> Tensor | None:
        """Take the numbers of this step and return those of the step before, on the CPU; None for the first step."""
        before = self.take()
        if fresh.device.type == "cuda":
            host = torch.empty(fresh.shape, dtype=fresh.dtype, pin_memory=True)
            host.copy_(fresh, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]  # untyped in torch
            arrived.record()
            self._before = (host, arrived)
        else:
            self._before = (fresh.detach().clone(), None)
        return before

    def take(self) -> Tensor | None:
        """Return the numbers that were handed in last, unless they have been read."""
        before, self._before = self._before, None
        if before is None:
            return None
        numbers, arrived = before
        if arrived is not None:
            arrived.synchronize()
        return numbers
