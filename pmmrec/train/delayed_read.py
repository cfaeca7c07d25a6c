"""Read a few numbers of every step one step late, so that nothing waits for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class DelayedRead:
    """Returns the numbers of the step before. By then the device has the next step to work on, so nothing waits."""

    def __init__(self) -> None:
        self._before: tuple[Tensor, torch.cuda.Event | None] | None = None

    def exchange(self, fresh: Tensor) -> Tensor | None:
        """Take this step's numbers, give those of the step before on the CPU; None where there was none."""
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
        """What has been handed in last and not read yet."""
        before, self._before = self._before, None
        if before is None:
            return None
        numbers, arrived = before
        if arrived is not None:
            arrived.synchronize()
        return numbers
