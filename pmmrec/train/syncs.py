"""Count the operations of a step after which the host waits for a GPU."""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PACKAGE = str(Path(__file__).parents[1])
_ops = torch.ops.aten
# The size or the value of the result depends on the numbers in a tensor, so the host must read them.
_WAITING = {
    _ops.nonzero,
    _ops.masked_select,
    _ops._local_scalar_dense,
    _ops._unique,
    _ops._unique2,
    _ops.unique_dim,
    _ops.unique_consecutive,
    _ops.unique_dim_consecutive,
    _ops.equal,
    _ops.bincount,
    _ops._coalesce,
}
_INDEXING = {_ops.index, _ops.index_put, _ops.index_put_, _ops._index_put_impl_, _ops._unsafe_index}


class HostSyncs(TorchDispatchMode):  # type: ignore[no-untyped-call]  # untyped in torch
    """A context that counts operations after which the host waits for a GPU, by name and by the line that asked.

    They are counted on every device, so a step on a CPU shows what it would do on a GPU; there, copies from the GPU to
    the host that are not asynchronous count too. Operations on numbers that a GPU run keeps on the host must be numpy's
    to be left out. Numbers that are asked for by `tolist` or `numpy` are seen on a GPU alone.

    Example:
        with HostSyncs() as syncs:
            loss = task(batch)
            loss.backward()
        assert syncs.count == 0, syncs.found
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped in torch
        self.found: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """How many there were."""
        return self.found.total()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if _waits(func, args, kwargs or {}, out):
            self.found[f"{func.overloadpacket.__name__} in {_caller()}"] += 1
        return out


def _waits(func: Any, args: Any, kwargs: Any, out: Any) -> bool:
    packet = func.overloadpacket
    if packet in _WAITING:
        return True
    if packet in _INDEXING:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if packet is _ops.repeat_interleave:
        return kwargs.get("output_size") is None
    if packet in (_ops._to_copy, _ops.copy_):
        source, target = (args[0], out) if packet is _ops._to_copy else (args[1], args[0])
        return _is_fetched(source, target) and not kwargs.get("non_blocking")
    return False


def _is_fetched(source: Any, target: Any) -> bool:
    """Whether numbers travel from a device to the host."""
    return isinstance(source, Tensor) and source.device.type != "cpu" and target.device.type == "cpu"


def _caller() -> str:
    """The innermost line of this package, or of none while gradients are computed."""
    for frame, line in traceback.walk_stack(None):
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE) and file != __file__:
            return f"{Path(file).relative_to(PACKAGE)}:{line}"
    return "no line of the package"
