"""The texts and images of a step's items, and which places count, for objectives that compare the two."""
# Shapes: S window positions, U distinct items of the step, D width.

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.contracts import Modality, Views, Windows
from pmmrec.precision import widened


def unit_vectors(views: Views, modality: Modality, objective: str) -> tuple[Tensor, Tensor]:
    """Unit vectors of all items as one field shows them, and which items have it."""
    items = views.items
    if modality not in items.cls_UD:
        raise ValueError(f"{objective}: items have no {modality.value} vectors; it needs those of text and of image")
    return F.normalize(widened(items.cls_UD[modality]), dim=1), items.has_U[modality]


def num_own(windows: Windows, num_items: int) -> Tensor:
    """`(U,)` int64: places of each item that count in the windows of this process."""
    index, is_counted = windows.item_index_BS.flatten(), windows.is_counted_BS.flatten()
    none_U = torch.zeros(num_items, dtype=torch.int64, device=index.device)
    return none_U.scatter_add(0, index, is_counted.to(torch.int64))


def closing(has_U: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to similarities: -inf for items without the field, unless no item has it, and none counts."""
    return torch.where(has_U | ~has_U.any(), 0.0, -math.inf).to(dtype)
