"""The contrast in views of a graph by loops over positions."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.graph_contrast import GraphContrast, graph_views
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.slots import readable


@twin_of(objectives, "graph_contrast")
def graph_contrast_by_loops(objective: GraphContrast, views: Views) -> tuple[Tensor, int]:
    """One view, one position after another, against the targets of all positions and its challenging negatives."""
    config, is_readable = objective.config, readable(views.items)
    of_pass, states = views.windows.passes[config.window], views.states[config.window]
    last = of_pass.is_target_BL.shape[1] - 1
    slots = [
        (b, position, int(of_pass.target_index_BL[b, position]))
        for b, position in of_pass.is_target_BL.nonzero().tolist()
        if config.targets != "last" or position == last
    ]
    slots = [slot for slot in slots if is_readable[slot[2]]]
    total = torch.zeros((), dtype=torch.float64)
    for view in graph_views(views):
        for b, position, target in slots:
            state = states.hidden_BLD[b, position if len(states.hidden_BLD[b]) > position else -1]
            if view.user_MD is not None and views.windows.user_index_B is not None:
                state = view.user_MD[views.windows.user_index_B[b]]
            rest = view.item_ND[target] - view.share_ND[target]
            drawn = of_pass.negative_index_BLC[config.negatives][b, position].tolist()
            others = [view.item_ND[other] for _, _, other in slots if other != target]
            others += [rest + view.share_ND[negative] for negative in drawn]
            own, *rest_of_sum = (
                torch.exp(_cosine(state, one) / config.temperature) for one in (view.item_ND[target], *others)
            )
            total = total - torch.log(own / (own + torch.stack(rest_of_sum).sum()))
    return total, len(slots)


def _cosine(one_D: Tensor, other_D: Tensor) -> Tensor:
    return torch.dot(one_D, other_D) / (one_D.square().sum() * other_D.square().sum()).sqrt()
