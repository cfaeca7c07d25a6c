"""The L2 term by loops over targets, vectors and numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.embedding_l2 import EmbeddingL2
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.slots import readable


@twin_of(objectives, "embedding_l2")
def l2_by_loops(objective: EmbeddingL2, views: Views) -> tuple[Tensor, int]:
    """One target after another, one number after another."""
    config, is_readable = objective.config, readable(views.items)
    nodes = views.propagated if config.of == "propagated" else views.unpropagated
    items = views.items if nodes is None else nodes.items
    users = None if nodes is None else nodes.user_MD
    of_pass = views.windows.passes[config.window]
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, position in of_pass.is_target_BL.nonzero().tolist():
        target = int(of_pass.target_index_BL[b, position])
        if not is_readable[target] or (config.targets == "last" and position != of_pass.is_target_BL.shape[1] - 1):
            continue
        rows = [items.fused_UD[target]]
        if config.negatives is not None:
            rows += [items.fused_UD[index] for index in of_pass.negative_index_BLC[config.negatives][b, position]]
        if users is not None and views.windows.user_index_B is not None:
            rows.append(users[views.windows.user_index_B[b]])
        for row in rows:
            for number in row:
                total = total + number * number / 2
        count += 1
    return total, count
