"""Gather items and users of all processes of a step, so that gradients flow back through the gather."""
# Shapes: U distinct items of all processes, M rows a process gives, W processes, B users, D width.

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pmmrec.contracts import GlobalItems, ItemVectors


class _Gather(torch.autograd.Function):
    """`(W, M, ...)` of all processes; a gradient is the sum of what all processes send back.

    Not torch's own: that one knows NCCL alone, and its relatives want as many collectives as there are processes.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:  # noqa: ARG004  # the shape that autograd asks for
        world = dist.get_world_size()
        together = own.new_empty((world * own.shape[0], *own.shape[1:]))
        dist.all_gather_into_tensor(together, own.contiguous())
        return together.view(world, *own.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # noqa: ARG004  # the shape that autograd asks for
        gradient = gradients[0].contiguous()
        if dist.get_backend() == "nccl":
            own = torch.empty_like(gradient[0])
            dist.reduce_scatter_tensor(own, gradient.flatten(0, 1))
            return own
        total = gradient.clone()
        dist.all_reduce(total)
        return total[dist.get_rank()]


def items_of_all(own: ItemVectors, global_items: GlobalItems, *, with_cls: bool) -> ItemVectors:
    """The items of a step, given those that this process encoded: item i comes from process i % W. All must call it.

    All vectors travel in one collective there and one back. `with_cls`: cls vectors are wanted too.
    """
    parts: dict[object, Tensor] = {"fused": own.fused_UD}
    parts |= {("stream", name): vectors for name, vectors in own.streams_UD.items()}
    parts |= {("cls", modality): vectors for modality, vectors in own.cls_UD.items() if with_cls}
    num_items = len(global_items.num_slots_U)
    packed = torch.cat(list(parts.values()), dim=1)  # of different precisions: the widest
    packed_UD = _dealt_back(packed[: _share(num_items, dist.get_rank())], num_items)
    widths = [part.shape[1] for part in parts.values()]
    gathered = {
        key: piece.to(part.dtype)
        for (key, part), piece in zip(parts.items(), torch.split(packed_UD, widths, dim=1), strict=True)
    }
    cls_UD = {name: gathered["cls", name] for name in own.cls_UD} if with_cls else {}
    streams_UD = {name: gathered["stream", name] for name in own.streams_UD}
    has_U = {name: global_items.has_U[name] for name in own.has_U}
    return ItemVectors(gathered["fused"], cls_UD, has_U, streams_UD, own.mask_D)


class OtherUsers:
    """`Peers`: the users of all processes, of whom each process has one span."""

    def __init__(self, num_users: int) -> None:
        self._counts = [_share(num_users, rank) for rank in range(dist.get_world_size())]

    @property
    def first(self) -> int:
        """The place of this process's first user among all of them."""
        return sum(self._counts[: dist.get_rank()])

    def of_all(self, rows_BD: Tensor) -> Tensor:
        """Rows of all users, given those of this process. All processes must call it."""
        together = _Gather.apply(_filled_up(rows_BD, max(self._counts)))
        return torch.cat([rows[:count] for rows, count in zip(together, self._counts, strict=True)])


def summed(own: Tensor) -> Tensor:
    """The sum over all processes, without gradients. All must call it."""
    total = own.detach().clone()
    dist.all_reduce(total)
    return total


def _dealt_back(own_MD: Tensor, num_items: int) -> Tensor:
    """`(U, D)`, given every W-th row of it."""
    together_WMD: Tensor = _Gather.apply(_filled_up(own_MD, _share(num_items, 0)))
    return together_WMD.transpose(0, 1).flatten(0, 1)[:num_items]


def _share(total: int, rank: int) -> int:
    """How many of `total` rows are this process's, dealt out as evenly as can be, the first processes first."""
    world = dist.get_world_size()
    return total // world + (rank < total % world)


def _filled_up(rows: Tensor, num_rows: int) -> Tensor:
    """With rows of zeros at the end; shares differ by one at most."""
    missing = num_rows - rows.shape[0]
    return torch.cat((rows, rows.new_zeros((missing, *rows.shape[1:])))) if missing else rows
