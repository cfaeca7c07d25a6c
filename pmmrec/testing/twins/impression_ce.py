"""The softmax over the candidates of an impression by loops over clicked items."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.impression_ce import ImpressionCE
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.slots import readable


@twin_of(objectives, "impression_ce")
def impression_ce_by_loops(objective: ImpressionCE, views: Views) -> tuple[Tensor, int]:
    """Minus the log of each clicked item's share among itself and the items that were not clicked."""
    items_UD, is_readable = views.items.fused_UD, readable(views.items)
    config = objective.config
    temperature = math.sqrt(items_UD.shape[1]) if config.temperature == "sqrt_width" else float(config.temperature)
    candidates = views.windows.passes[objective.request].candidates
    if candidates is None:
        raise ValueError("the pass holds no candidates")
    index, is_clicked = candidates.item_index_BC.tolist(), candidates.is_clicked_BC.tolist()
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, is_shown in enumerate(candidates.is_shown_BC.tolist()):
        state = views.states[objective.request].hidden_BLD[b, -1]
        places = [c for c in range(len(is_shown)) if is_shown[c] and is_readable[index[b][c]]]
        odds = {c: (torch.dot(state, items_UD[index[b][c]]) / temperature).exp() for c in places}
        others = [odds[c] for c in places if not is_clicked[b][c]]
        for c in places:
            if is_clicked[b][c] and others:
                total = total - (odds[c] / (odds[c] + torch.stack(others).sum())).log()
                count += 1
    return total, count
