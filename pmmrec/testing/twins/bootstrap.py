"""What users and items predict of one another, by loops over targets."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.bootstrap import Bootstrap
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.slots import readable


@twin_of(objectives, "bootstrap")
def bootstrap_by_loops(objective: Bootstrap, views: Views) -> tuple[Tensor, int]:
    """One target after another; without dropout."""
    config, is_readable = objective.config, readable(views.items)
    before = None if views.propagated is None else views.propagated.targets
    items = views.items if before is None else before.items
    of_pass, states = views.windows.passes[config.window], views.states[config.window]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, position in of_pass.is_target_BL.nonzero().tolist():
        target = int(of_pass.target_index_BL[b, position])
        if not is_readable[target] or (config.targets == "last" and position != of_pass.is_target_BL.shape[1] - 1):
            continue
        user = wanted_user = states.hidden_BLD[b, position]
        if before is not None and before.user_MD is not None and views.windows.user_index_B is not None:
            wanted_user = before.user_MD[views.windows.user_index_B[b]]
        wanted_item = items.fused_UD[target]
        total = total + 2 - _cosine(user, wanted_item) - _cosine(views.items.fused_UD[target], wanted_user)
        for name in config.streams:
            stream = views.items.streams_UD[name][target]
            cosines = _cosine(stream, wanted_item) + _cosine(stream, items.streams_UD[name][target])
            total = total + config.stream_weight * (2 - cosines)
        count += 1
    return total, count


def _cosine(one_D: Tensor, wanted_D: Tensor) -> Tensor:
    wanted_D = wanted_D.detach()
    return torch.dot(one_D, wanted_D) / (one_D.square().sum().sqrt() * wanted_D.square().sum().sqrt())
