"""Matching of texts with images by loops over places, items and pairs."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmmrec.contracts import Modality, Views
from pmmrec.objectives import objectives
from pmmrec.objectives.item_matching import ItemMatching
from pmmrec.testing.twins import twin_of

WORD = (1 << 64) - 1


def mixed_by_words(x: int) -> int:
    """Splitmix64's last steps, in whole numbers without end that are cut to 64 bits."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    return x ^ (x >> 31)


def drawn_by_loops(views: Views, item: int, modality: Modality, temperature: float) -> int:
    """The other item whose vector of `modality` is compared with this item's vector of the other modality."""
    own = Modality.IMAGE if modality is Modality.TEXT else Modality.TEXT
    vector_D = views.items.cls_UD[own][item].detach()
    draw = 0 if views.draw is None else int(views.draw)
    seed = mixed_by_words(item + mixed_by_words(draw + (1 if modality is Modality.IMAGE else 2)) & WORD)
    best, found = -math.inf, 0
    for j, other_D in enumerate(views.items.cls_UD[modality].detach()):
        if j == item or not views.items.has_U[modality][j]:
            continue
        cosine = float(torch.dot(vector_D, other_D) / (vector_D.norm() * other_D.norm()))
        bits = mixed_by_words((seed + j * 0x9E3779B97F4A7C15) & WORD) & ((1 << 53) - 1)
        number = min(max(bits / (1 << 53), 1e-15), 1 - 1e-15)
        score = cosine / temperature - math.log(-math.log(number))
        if score > best:
            best, found = score, j
    return found


@twin_of(objectives, "itm")
def item_matching_by_loops(objective: ItemMatching, views: Views) -> tuple[Tensor, int]:
    """A third of three binary cross-entropies, summed over every place of a window whose item has text and image."""
    if views.fuse is None:
        raise ValueError("itm: the views fuse no pairs")
    has_U, temperature = views.items.has_U, objective.config.temperature
    total, count = torch.zeros((), dtype=torch.float64), 0

    def odds(text: int, image: int) -> Tensor:
        (fused_D,) = views.fuse(torch.tensor([text]), torch.tensor([image]))  # type: ignore[misc]  # checked above
        return torch.exp(objective.head.weight @ fused_D + objective.head.bias)

    for row, is_valid in zip(views.windows.item_index_BS.tolist(), views.windows.is_valid_BS.tolist(), strict=True):
        for place, item in enumerate(row):
            if not is_valid[place] or not all(has_U[modality][item] for modality in Modality):
                continue
            if min(int(has_U[modality].sum()) for modality in Modality) < 2:
                continue  # no other text, or no other image
            image = drawn_by_loops(views, item, Modality.IMAGE, temperature)
            text = drawn_by_loops(views, item, Modality.TEXT, temperature)
            for own, pair in ((1, (item, item)), (0, (item, image)), (0, (text, item))):
                both_2 = odds(*pair)
                total = total - (both_2[own] / both_2.sum()).log() / 3
            count += 1
    return total, count
