"""The contrast of an item's text with its image by loops over places and items."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import Modality, Views
from pmmrec.objectives import objectives
from pmmrec.objectives.item_contrast import ItemContrast
from pmmrec.testing.twins import twin_of

BOTH_WAYS = ((Modality.TEXT, Modality.IMAGE), (Modality.IMAGE, Modality.TEXT))


@twin_of(objectives, "item_contrast")
def item_contrast_by_loops(objective: ItemContrast, views: Views) -> tuple[Tensor, int]:
    """Half of both cross-entropies, summed over every place of a window whose item has text and image."""
    index, is_valid = views.windows.item_index_BS.tolist(), views.windows.is_valid_BS.tolist()
    cls_UD, has_U, learned = views.items.cls_UD, views.items.has_U, objective.log_scale
    scale = 1 / objective.config.temperature if learned is None else learned[0].exp()
    total, count = torch.zeros((), dtype=torch.float64), 0

    def odds(anchor: Modality, i: int, other: Modality, j: int) -> Tensor:
        left, right = cls_UD[anchor][i], cls_UD[other][j]
        cosine = torch.dot(left, right) / (left.norm() * right.norm())
        return torch.exp(scale * cosine)

    for b, row in enumerate(index):
        for s, item in enumerate(row):
            if not is_valid[b][s] or not all(has_U[modality][item] for modality in Modality):
                continue
            if max(int(has_U[modality].sum()) for modality in Modality) < 2:
                continue  # nothing to compare with
            for anchor, other in BOTH_WAYS:
                columns = [j for j in range(len(has_U[other])) if has_U[other][j]]
                all_odds = torch.stack([odds(anchor, item, other, j) for j in columns]).sum()
                total = total - (odds(anchor, item, other, item) / all_odds).log() / 2
            count += 1
    return total, count
