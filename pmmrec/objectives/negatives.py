"""Weigh the items of a batch as negatives of each user."""
# Shapes: B users, S window positions, U columns: the distinct items that positions are compared with.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import Self

from pmmrec.contracts import Windows

NegativeRule = Literal["unseen", "other_users"]


@dataclass(frozen=True)
class Negatives:
    """The number of slots in which each item is a negative of each user."""

    weight_BU: Tensor  # floating point, whole numbers

    @property
    def is_negative_BU(self) -> Tensor:
        return self.weight_BU > 0

    @property
    def has_any_B(self) -> Tensor:
        """Which users have a negative; the others are left out of contrastive means."""
        return self.is_negative_BU.any(dim=1)

    @property
    def log_weight_BU(self) -> Tensor:
        """What to add to a score so that it counts once per slot; -inf where an item is not a negative."""
        return self.weight_BU.log()


@dataclass(frozen=True)
class Columns:
    """The items that positions are compared with, and the number of slots that hold each.

    With several processes, an item that several of them hold is one column with the slots of all of them.
    """

    num_slots_U: Tensor  # int64, valid slots of the item in all windows
    num_own_slots_BU: Tensor  # int64, those of them in the user's window

    @classmethod
    def of(cls, windows: Windows, num_items: int, num_slots_U: Tensor | None = None) -> Self:
        """The `num_items` distinct items of one step. Items that are in no window (replacements) have no slot.

        `num_slots_U`: the slots in the windows of all processes; None: there are no other windows.
        """
        index_BS, is_valid_BS = windows.item_index_BS, windows.is_valid_BS
        none_BU = torch.zeros(index_BS.shape[0], num_items, dtype=torch.int64, device=index_BS.device)
        own_BU = none_BU.scatter_add(1, index_BS, is_valid_BS.to(torch.int64))
        return cls(own_BU.sum(dim=0) if num_slots_U is None else num_slots_U, own_BU)

    @property
    def is_own_BU(self) -> Tensor:
        """Which items the user's window holds."""
        return self.num_own_slots_BU > 0

    def negatives(self, rule: NegativeRule, dtype: torch.dtype, is_open_U: Tensor | None = None) -> Negatives:
        """Negatives of each user by `rule`, with weights in `dtype`; only items in `is_open_U`, if it is given.

        `unseen`: every slot of an item that is not in the user's window (the words of PMMRec, arXiv 2312.09602).
        `other_users`: every slot of another user's window, the user's own items included (eq. 5 literally).
        """
        if rule == "unseen":
            weight_BU = self.num_slots_U.expand_as(self.num_own_slots_BU).masked_fill(self.is_own_BU, 0)
        else:
            weight_BU = self.num_slots_U - self.num_own_slots_BU
        if is_open_U is not None:
            weight_BU = weight_BU.masked_fill(~is_open_U, 0)
        return Negatives(weight_BU.to(dtype))
