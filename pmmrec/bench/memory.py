"""The peak memory of steps: of tensors on a GPU, else of the process beyond what it held before."""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import torch

from pmmrec.train.cost import peak_memory_bytes, reset_peak

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Measures from when it is made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        gc.collect()
        reset_peak(device)
        self._before = 0
        if device.type != "cuda" and sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)  # freed memory that the process keeps would hide the first growth
            _RESET.write_text("5", encoding="ascii")  # the peak begins anew
            self._before = _status("VmRSS")
        elif device.type != "cuda":
            self._before = peak_memory_bytes(device) or 0

    def growth(self) -> int:
        """Bytes at the highest point: all tensors of a GPU, else what the process has grown by."""
        if self._device.type != "cuda" and sys.platform == "linux":
            return _status("VmHWM") - self._before
        return (peak_memory_bytes(self._device) or 0) - self._before


def _status(name: str) -> int:
    """A figure of this process, in bytes."""
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
