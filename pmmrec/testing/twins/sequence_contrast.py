"""The contrast of sequences (UniSRec) by loops over users."""

from __future__ import annotations

import torch
from torch import Tensor

from pmmrec.contracts import Views
from pmmrec.objectives import objectives
from pmmrec.objectives.sequence_contrast import SequenceContrast
from pmmrec.requests import NextItems
from pmmrec.testing.twins import twin_of


@twin_of(objectives, "sequence_contrast")
def sequence_contrast_by_loops(objective: SequenceContrast, views: Views) -> tuple[Tensor, int]:
    """One user after another against the views of all users with another target."""
    config, total, count = objective.config, torch.zeros((), dtype=torch.float64), 0
    index, is_valid = views.windows.item_index_BS.tolist(), views.windows.is_valid_BS.tolist()
    users = [b for b in range(len(index)) if is_valid[b][-1] and is_valid[b][-2]]
    state, view = ({b: views.states[one].hidden_BLD[b, -1] for b in users} for one in (NextItems(), config.dropped))
    for b in users:
        others = [j for j in users if index[j][-1] != index[b][-1]]
        if not others:
            continue
        cosines = [torch.dot(state[b], view[j]) / (state[b].norm() * view[j].norm()) for j in (b, *others)]
        scores = (torch.stack(cosines) / config.temperature).exp()
        total, count = total - torch.log(scores[0] / scores.sum()), count + 1
    return total, count
