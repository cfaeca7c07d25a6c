"""Histories packed without their padding, for user encoders that work place by place."""
# Shapes: B users, L positions, K valid positions of all users, D width.

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import Self

from pmmrec.contracts import History, UserStates
from pmmrec.errors import RecipeError
from pmmrec.packing import Packing, left_padded, lengths_of


@dataclass(frozen=True)
class PackedHistory:
    """Where the valid positions of histories lie when their padding is left out."""

    history: History
    packing: Packing  # of the users, longer histories first; a user without any item has one place
    place_K: Tensor  # int64, where each packed place lies in (B, L), flat
    from_end_K: Tensor  # int64, how many items of the same user follow
    row_B: Tensor  # int64, which row of the packing each user is

    @classmethod
    def of(cls, history: History) -> Self:
        """The packing of a history."""
        length, device = history.item_BLD.shape[1], history.item_BLD.device
        length_B = history.length_B or lengths_of(history.is_valid_BL)
        packing, *places = left_padded(length_B.values, length)
        return cls(history, packing, *(one.on(device) for one in places))

    def packed(self, x_BL: Tensor) -> Tensor:
        """`(B, L, ...)` -> `(K, ...)`."""
        return x_BL.flatten(0, 1).index_select(0, self.place_K)

    def states(self, hidden_KD: Tensor) -> UserStates:
        """Packed states `(K, D)` as those of the histories, `(B, L, D)`; zeros at padding.

        Where the last states alone are read, they are given one for each row of the packing, `(R, D)` -> `(B, 1, D)`.
        """
        if self.history.last_alone:
            return UserStates(hidden_KD.index_select(0, self.row_B)[:, None], self.history.is_valid_BL[:, -1:])
        num_users, length = self.history.is_valid_BL.shape
        hidden = hidden_KD.new_zeros((num_users * length, hidden_KD.shape[1]))
        hidden_BLD = hidden.index_copy(0, self.place_K, hidden_KD).view(num_users, length, -1)
        return UserStates(hidden_BLD, self.history.is_valid_BL)


def masked(item_KD: Tensor, packed: PackedHistory, own_D: Tensor) -> Tensor:
    """Packed items `(K, D)` with the vector of the mask `(D,)` at the positions that an objective has hidden.

    `own_D`: the mask of the user encoder, where the history brings none.
    """
    if packed.history.is_masked_BL is None:
        return item_KD
    mask_D = own_D if packed.history.mask_D is None else packed.history.mask_D
    is_masked_K1 = packed.packed(packed.history.is_masked_BL)[:, None]
    return torch.where(is_masked_K1, mask_D.to(item_KD.dtype), item_KD)


def refuse_longer(history: History, max_inputs: int, max_positions: int | None = None) -> None:
    """RecipeError where a history has more positions than an encoder reads: `max_positions`, or `max_inputs`."""
    length = history.item_BLD.shape[1]
    if length > (max_positions or max_inputs):
        raise RecipeError(
            f"user_encoder.max_inputs: {max_inputs}, but histories of {length} inputs came; "
            "shorten the windows or raise max_inputs"
        )
