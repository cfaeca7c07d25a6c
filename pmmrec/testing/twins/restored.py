"""The mean of what guessing each item's hidden parts costs, by loops over places."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.restored import MaskedPatches, MaskedWords
from pmmrec.testing.twins import twin_of


@twin_of(objectives, "mlm", "mae")
def restored_by_loops(objective: MaskedWords | MaskedPatches, views: Views) -> tuple[Tensor, int]:
    """The loss of every place of a window whose item has the field; how an item's loss comes about is tested apart."""
    loss_U, has_U = views.items.streams_UD[objective.view.value], views.items.has_U[objective.field]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for row, is_valid in zip(views.windows.item_index_BS.tolist(), views.windows.is_valid_BS.tolist(), strict=True):
        for place, item in enumerate(row):
            if is_valid[place] and has_U[item]:
                total, count = total + loss_U[item, 0], count + 1
    return total, count
