"""BCE and BPR by loops over positions and negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.drawn_negatives import BCE, BPR
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.slots import readable


@twin_of(objectives, "bce", "bpr")
def drawn_by_loops(objective: BCE | BPR, views: Views) -> tuple[Tensor, int]:
    """One position after another, one negative after another."""
    config, is_readable = objective.config, readable(views.items)
    items_UD = views.items.fused_UD if config.stream is None else views.items.streams_UD[config.stream]
    of_pass, states = views.windows.passes[config.window], views.states[config.window]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, position in of_pass.is_target_BL.nonzero().tolist():
        target = int(of_pass.target_index_BL[b, position])
        if not is_readable[target] or (config.targets == "last" and position != of_pass.is_target_BL.shape[1] - 1):
            continue
        state, drawn = states.hidden_BLD[b, position], of_pass.negative_index_BLC[config.negatives][b, position]
        right, *wrong = (torch.dot(state, items_UD[index]) / config.temperature for index in (target, *drawn))
        if config.type == "bce":
            no = torch.stack([-torch.log(torch.sigmoid(-score)) for score in wrong])
            total = total - torch.log(torch.sigmoid(right)) + no.mean()
        else:
            total = total + torch.stack([-torch.log(torch.sigmoid(right - score)) for score in wrong]).mean()
        count += 1
    return total, count
