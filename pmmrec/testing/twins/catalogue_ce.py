"""The softmax over the catalogue by loops over positions and items."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.catalogue_ce import CatalogueCE
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.slots import readable, target_slots


@twin_of(objectives, "catalogue_ce")
def catalogue_ce_by_loops(objective: CatalogueCE, views: Views) -> tuple[Tensor, int]:
    """Minus the log of the target's share in the softmax over all readable items, one position after another."""
    config, items_UD, is_readable = objective.config, views.items.fused_UD, readable(views.items)
    temperature = math.sqrt(items_UD.shape[1]) if config.temperature == "sqrt_width" else float(config.temperature)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for _, state, target in target_slots(views, config):
        if not is_readable[target]:
            continue
        scores = {u: torch.dot(state, item) / temperature for u, item in enumerate(items_UD) if is_readable[u]}
        total = total - (scores[target].exp() / torch.stack(list(scores.values())).exp().sum()).log()
        count += 1
    return total, count
