"""Alignment of texts and images (PMMRec, eq. 6-9) by loops over positions and slots."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import Modality, Views
from pmmrec.objectives import objectives
from pmmrec.objectives.alignment import Alignment, AlignmentConfig
from pmmrec.testing.twins import twin_of


@twin_of(objectives, "alignment")
def alignment_by_loops(objective: Alignment, views: Views) -> tuple[Tensor, int]:
    """Half of both directions, over positions with a next item whose own item has text and image."""
    index, is_valid = views.windows.item_index_BS.tolist(), views.windows.is_valid_BS.tolist()
    num_users, num_positions = views.windows.item_index_BS.shape
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b in range(num_users):
        for position in range(num_positions - 1):
            if not (is_valid[b][position] and is_valid[b][position + 1]):
                continue
            if not all(views.items.has_U[modality][index[b][position]] for modality in Modality):
                continue
            text = _direction(views, objective.config, b, position, (Modality.TEXT, Modality.IMAGE))
            image = _direction(views, objective.config, b, position, (Modality.IMAGE, Modality.TEXT))
            if text is None or image is None:
                continue
            total, count = total + (text + image) / 2, count + 1
    return total, count


def _direction(
    views: Views, config: AlignmentConfig, b: int, position: int, sides: tuple[Modality, Modality]
) -> Tensor | None:
    """Eq. 8 (anchor text) or 9 (anchor image) at one position; None without a negative term."""
    anchor, other = sides
    index, is_valid = views.windows.item_index_BS.tolist(), views.windows.is_valid_BS.tolist()
    num_users, num_positions = views.windows.item_index_BS.shape
    own_items = {index[b][s] for s in range(num_positions) if is_valid[b][s]}
    item, following = index[b][position], index[b][position + 1]

    def delta(modality: Modality, j: int) -> Tensor:
        left, right = views.items.cls_UD[anchor][item], views.items.cls_UD[modality][j]
        return torch.exp(torch.dot(left, right) / (left.norm() * right.norm()) / config.temperature)

    negatives = []
    for u in range(num_users):
        for s in range(num_positions):
            j = index[u][s]
            is_own = j in own_items if config.negatives == "unseen" else u == b
            if is_own or not is_valid[u][s]:
                continue
            if views.items.has_U[other][j]:
                negatives.append(delta(other, j))
            if config.intra_negatives and views.items.has_U[anchor][j]:
                negatives.append(delta(anchor, j))
    if not negatives:
        return None
    numerator = delta(other, item)
    denominator = delta(other, item) + torch.stack(negatives).sum()
    for modality in (other, anchor) if config.next_item_positives else ():
        if views.items.has_U[modality][following]:
            numerator = numerator + delta(modality, following)
            if config.positives_in_denominator:
                denominator = denominator + delta(modality, following)
    return -torch.log(numerator / denominator)
