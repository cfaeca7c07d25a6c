"""Dropout that costs little on a CPU, where drawing torch's mask takes most of its time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEPS = 1 << 16  # 16 random bits decide over one element


class Dropout(nn.Dropout):
    """`nn.Dropout`, whose mask on a CPU is drawn 16 bits an element in place of a float64 number.

    There, p is rounded to a multiple of 1/65536, and what is kept is scaled by 1 / (1 - p) with the rounded p, so that
    the mean stays exact. The bits come from torch's default generator: the same state gives the same mask, with any
    number of threads. On other devices, and under `torch.compile`, it is torch's own fused dropout.

    Example:
        dropout = Dropout(0.1)
        hidden_KD = dropout.add(residual_KD, branch_KD)
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's name
        return dropout(input, self.p) if self.training else input

    def add(self, residual: Tensor, branch: Tensor) -> Tensor:
        """`residual + self(branch)`, in one pass where that is faster."""
        if not self.training or self.p == 0 or not _is_drawn_here(branch) or residual.dtype != branch.dtype:
            summed: Tensor = residual + self(branch)
            return summed
        return torch.addcmul(residual, branch, _factors(branch, self.p))


def dropout(x: Tensor, p: float) -> Tensor:
    """`x` with each element set to zero with probability `p` below 1, the others scaled by 1 / (1 - p)."""
    if p == 0:
        return x
    return x * _factors(x, p) if _is_drawn_here(x) else F.dropout(x, p)


def _is_drawn_here(x: Tensor) -> bool:
    return x.device.type == "cpu" and not torch.compiler.is_compiling()


@torch.no_grad()
def _factors(x: Tensor, p: float) -> Tensor:
    """What each element of `x` is multiplied by: 0 with probability `p`, else 1 / (1 - p)."""
    is_kept, factor = kept(x, p)
    return is_kept.to(x.dtype).mul_(factor)


def drop(x: Tensor, is_kept: Tensor, factor: float, into: Tensor) -> Tensor:
    """Write `x` times 0 or `factor` to `into`, which may be `x`: numpy multiplies by bytes several times as fast."""
    if not x.is_meta:
        np.multiply(x.numpy(), is_kept.numpy(), out=into.numpy())
    return into.mul_(factor)


def draw_cheaply(model: nn.Module) -> None:
    """Let all dropout of a model of another library be `Dropout`, in place."""
    for module in model.modules():
        if type(module) is nn.Dropout:
            module.__class__ = Dropout


def draw_as_torch(model: nn.Module) -> None:
    """Undo `draw_cheaply`."""
    for module in model.modules():
        if type(module) is Dropout:
            module.__class__ = nn.Dropout  # type: ignore[assignment]  # the class it is derived from


def kept(x: Tensor, p: float) -> tuple[Tensor, float]:
    """1 for elements of `x` that are kept, each with probability 1 - `p`, else 0, and what to multiply the kept by.

    The numbers are uint8: torch takes six times as long to turn bool into float, and numpy compares much faster.
    """
    num_dropped = min(round(p * _STEPS), _STEPS - 1)
    if x.is_meta:  # a trial of how much memory a step takes
        return torch.empty_like(x, dtype=torch.uint8), _STEPS / (_STEPS - num_dropped)
    words = torch.empty(-(-x.numel() // 4), dtype=torch.int64)
    bits = words.random_(torch.iinfo(torch.int64).min, None).numpy().view(np.int16)  # uniform from -32768 to 32767
    is_kept = bits[: x.numel()] >= num_dropped - _STEPS // 2
    return torch.from_numpy(is_kept.view(np.uint8)).view(x.shape), _STEPS / (_STEPS - num_dropped)
