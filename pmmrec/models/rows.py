"""Lay out the rows that an encoder was given over the items of a batch."""
# Shapes: R rows given to one encoder, U distinct items.

from __future__ import annotations

import torch
from torch import Tensor


def laid_out(rows: Tensor, item_index_R: Tensor, has_U: Tensor) -> Tensor:
    """R rows at the places of their items, zeros for the items that `has_U` leaves out.

    `torch.where` and not a product: the gradient of a row that stands in is 0 whatever its value.
    """
    spread = rows.new_zeros((has_U.shape[0], *rows.shape[1:])).index_copy(0, item_index_R, rows)
    return torch.where(has_U.view(-1, *[1] * (rows.dim() - 1)), spread, spread.new_zeros(()))
