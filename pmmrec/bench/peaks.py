"""What the device reaches in a plain product and in a plain copy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from pmmrec.bench.clock import StageClock

SIDE = {"cuda": 8192, "cpu": 1024}  # of the square matrices
COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}
ROUNDS = 5
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Peaks:
    """The best of a few rounds each."""

    flops_per_s: float  # of a product of square matrices in the precision of the run
    bytes_per_s: float  # read and written, of a copy on the device
    upload_per_s: float  # bytes of a copy to the device, from pinned memory

    def floor_s(self, flops: float, num_bytes: float) -> float:
        """The least time for so much work."""
        return max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)


def measure_peaks(device: torch.device, precision: str) -> Peaks:
    """Measure them now, by the clock that measures steps."""
    side, dtype = SIDE.get(device.type, SIDE["cpu"]), DTYPES[precision]
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    product_s = _best_s(device, lambda: left @ right)
    count = COPIED_BYTES.get(device.type, COPIED_BYTES["cpu"])
    source = torch.zeros(count, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(device, lambda: target.copy_(source))
    upload_s = copy_s
    if device.type == "cuda":
        pinned = torch.empty(count, dtype=torch.uint8, pin_memory=True)
        upload_s = _best_s(device, lambda: target.copy_(pinned, non_blocking=True))
    return Peaks(2.0 * side**3 / product_s, 2.0 * count / copy_s, count / upload_s)


def _best_s(device: torch.device, work: Callable[[], object]) -> float:
    """Seconds of the fastest of a few rounds, the first of which does not count."""
    clock, best_s = StageClock(device), float("inf")
    for number in range(1 + ROUNDS):
        clock.begin()
        work()
        seconds, _ = clock.end()
        if number:
            best_s = min(best_s, sum(seconds.values()))
    return best_s
