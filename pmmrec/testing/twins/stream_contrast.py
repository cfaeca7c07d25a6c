"""The contrast of streams by loops over positions."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.stream_contrast import StreamContrast
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.slots import readable, target_slots


@twin_of(objectives, "stream_contrast")
def stream_contrast_by_loops(objective: StreamContrast, views: Views) -> tuple[Tensor, int]:
    """One position after another, one stream after another, against the targets of all positions."""
    config, items, is_readable = objective.config, views.items, readable(views.items)
    targets = [target for _, _, target in target_slots(views, config) if is_readable[target]]
    ids_UD = items.streams_UD.get("ids", items.fused_UD)
    total, count = torch.zeros((), dtype=torch.float64), 0
    for target in targets:
        others = [other for other in targets if other != target]
        if not others:
            continue
        x_D = ids_UD[target]
        for place, name in enumerate(config.streams):
            x_D = _through(objective.passes[place], x_D)
            told_E = _through(objective.of_ids[place - 1], x_D) if place else x_D
            rows = [_through(objective.of_streams[place], items.streams_UD[name][one]) for one in (target, *others)]
            own, *rest = (torch.exp(torch.dot(told_E, row_E) / config.temperature) for row_E in rows)
            total = total - torch.log(own / (own + torch.stack(rest).sum()))
        count += 1
    return total, count


def _through(layer: nn.Module, x_D: Tensor) -> Tensor:
    if not isinstance(layer, nn.Linear):
        raise TypeError("a layer is linear")
    return torch.stack([torch.dot(row_D, x_D) + bias for row_D, bias in zip(layer.weight, layer.bias, strict=True)])
