"""Compute scores and losses in float32 or wider, outside autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def widened(x: Tensor) -> Tensor:
    """`x` in float32 when it is narrower; float32 and float64 stay as they are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def outside_autocast(device: torch.device) -> AbstractContextManager[object]:
    """A context in which no product is done in half precision; on the meta device none is done at all."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)
