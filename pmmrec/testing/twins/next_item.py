"""DAP (PMMRec, eq. 5) by loops over positions and slots."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.next_item import NextItem
from pmmrec.testing.twins import twin_of
from pmmrec.testing.twins.slots import readable, target_slots


@twin_of(objectives, "next_item")
def next_item_by_loops(objective: NextItem, views: Views) -> tuple[Tensor, int]:
    """Eq. 5: one position after another, one slot after another."""
    config, items_UD, is_readable = objective.config, views.items.fused_UD, readable(views.items)
    index, is_valid = views.windows.item_index_BS.tolist(), views.windows.is_valid_BS.tolist()
    num_users, num_positions = views.windows.item_index_BS.shape
    temperature = math.sqrt(items_UD.shape[1]) if config.temperature == "sqrt_width" else float(config.temperature)
    log_q = torch.zeros(len(items_UD)) if views.log_q_U is None else views.log_q_U
    total, count = torch.zeros((), dtype=torch.float64), 0
    for b, state, following in target_slots(views, config):
        own_items = {index[b][s] for s in range(num_positions) if is_valid[b][s]}
        negatives = []
        for other in range(num_users):
            for s in range(num_positions):
                item = index[other][s]
                is_own = item in own_items if config.negatives == "unseen" else other == b
                if is_own or not is_valid[other][s] or not is_readable[item]:
                    continue
                score = torch.dot(state, items_UD[item]) / temperature
                negatives.append(torch.exp(score if config.logq == "none" else score - log_q[item]))
        if not negatives or not is_readable[following]:
            continue
        score = torch.dot(state, items_UD[following]) / temperature
        positive = torch.exp(score - log_q[following] if config.logq == "all_columns" else score)
        total = total - torch.log(positive / (positive + torch.stack(negatives).sum()))
        count += 1
    return total, count
