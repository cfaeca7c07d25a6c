"""Tensors that are whole or sharded (DTensor), without importing DTensor where nothing is sharded."""

from __future__ import annotations

import sys
from typing import Any

from torch import Tensor

_DTENSOR = "torch.distributed.tensor"  # takes a third of a second to import; no DTensor exists before


def is_sharded(tensor: Any) -> bool:
    """Whether this is a DTensor."""
    module = sys.modules.get(_DTENSOR)
    return module is not None and isinstance(tensor, module.DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor. Every process must call it."""
    full: Tensor = tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # of DTensor
    return full


def own(tensor: Tensor) -> Tensor:
    """This process's shard, or the tensor if it is not sharded."""
    shard: Tensor = tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]  # of DTensor
    return shard


def like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, sharded like `target`."""
    if not is_sharded(target):
        return value
    from torch.distributed.tensor import distribute_tensor

    sharded: Any = target
    return distribute_tensor(value.to(target.device), sharded.device_mesh, sharded.placements)
