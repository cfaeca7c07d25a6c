"""Tell the target of a position from the targets of all other positions of the batch."""
# Shapes: U distinct items, K positions with a target, C further candidates of a position.

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.contracts import Term, Views
from pmmrec.objectives.targets import TargetStates

NO_TARGET = -1


def told_apart(score_KU: Tensor, more_KC: Tensor | None, weight_U: Tensor, targets: TargetStates) -> Term:
    """A cross-entropy of targets against those of other positions, with the metrics `chance` and `accuracy`.

    Equal targets are no negatives of one another. Counted are positions whose target counts and is told from anything.

    Args:
        score_KU: Of all items; an item that is nobody's target takes no part.
        more_KC: Scores of further negatives of each position; None: there are none.
        weight_U: How often each item is a target; see `num_targets`.
        targets: Of the K positions.
    """
    target_K, target_K1 = targets.target_K, targets.target_K[:, None]
    num_negative_K = weight_U.sum() - weight_U[target_K]
    bias_KU = weight_U.log().expand_as(score_KU).scatter(1, target_K1, 0.0)  # -inf: is nobody's target
    is_open_KU = (bias_KU > -math.inf).scatter(1, target_K1, value=False)
    if more_KC is not None:
        num_more = more_KC.shape[1]
        score_KU, num_negative_K = torch.cat((score_KU, more_KC), dim=1), num_negative_K + num_more
        bias_KU, is_open_KU = F.pad(bias_KU, (0, num_more)), F.pad(is_open_KU, (0, num_more), value=True)
    is_counted_K = targets.is_counted_K & (num_negative_K > 0)
    loss_K = F.cross_entropy(score_KU + bias_KU, target_K, reduction="none")
    loss = torch.where(is_counted_K, loss_K, 0.0).sum()

    best_K = score_KU.detach().masked_fill(~is_open_KU, -math.inf).amax(dim=1)
    is_right_K = is_counted_K & (score_KU.detach().gather(1, target_K1)[:, 0] > best_K)
    count, num_right = is_counted_K.sum().to(loss.dtype), is_right_K.sum().to(loss.dtype)
    chance = torch.where(is_counted_K, num_negative_K.log1p(), 0.0).sum()
    return Term(loss, count, {"chance": torch.stack((chance, count)), "accuracy": torch.stack((num_right, count))})


def num_targets(views: Views, targets: TargetStates, dtype: torch.dtype) -> Tensor:
    """`(U,)`: of how many positions that count, in all processes, each item is the target."""
    query = targets.query
    target_BL = torch.full_like(query.states.is_valid_BL, NO_TARGET, dtype=dtype)
    found_K = torch.where(targets.is_counted_K, targets.target_K, NO_TARGET)
    target_BL = target_BL.index_put((query.user_K, query.position_K), found_K.to(dtype))
    if views.peers is not None:
        target_BL = views.peers.of_all(target_BL)
    target = target_BL.flatten().to(torch.int64)
    none_U = torch.zeros(len(views.items.fused_UD), dtype=dtype, device=target.device)
    return none_U.scatter_add(0, target.clamp(min=0), (target != NO_TARGET).to(dtype))
