"""The contrast of targets (UniSRec, VQRec) by loops over positions."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.target_contrast import TargetContrast
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.slots import readable, target_slots


@twin_of(objectives, "target_contrast")
def target_contrast_by_loops(objective: TargetContrast, views: Views) -> tuple[Tensor, int]:
    """One position after another against the targets of all positions, one after another."""
    config, items, is_readable = objective.config, views.items, readable(views.items)
    slots = [slot for slot in target_slots(views, config) if is_readable[slot[2]]]
    total, count = torch.zeros((), dtype=torch.float64), 0
    is_cosine = config.similarity == "cosine"
    fused_UD = {target: items.fused_UD[target] for _, _, target in slots}
    fused_UD = {target: _unit(row) if is_cosine else row for target, row in fused_UD.items()}
    for _, hidden, target in slots:
        state = _unit(hidden) if is_cosine else hidden
        vectors = [fused_UD[other] for _, _, other in slots if other != target]
        if config.synthetic:
            vectors.append(items.streams_UD["synthetic"][target])
        if not vectors:
            continue
        own = torch.exp(torch.dot(state, fused_UD[target]) / config.temperature)
        others = [torch.exp(torch.dot(state, vector) / config.temperature) for vector in vectors]
        total, count = total - torch.log(own / (own + torch.stack(others).sum())), count + 1
    return total, count


def _unit(x_D: Tensor) -> Tensor:
    return x_D / x_D.square().sum().sqrt()
