"""What happens when a loss is no number: no update, and the items and users that caused it are named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pmmrec.contracts import Batch
from pmmrec.errors import DivergenceError
from pmmrec.train.processes import joined
from pmmrec.train.task import TrainingTask

ADVICE = "Lower train.optimizer.learning_rate, or train in fp32 or bf16"


def stop_if_nonfinite(
    totals: Mapping[str, Tensor],
    task: TrainingTask,
    batch: Batch,
    item_names: Callable[[Tensor, Tensor], list[str]],
    gathered: Callable[[list[str]], list[str]],
    step: int,
) -> None:
    """DivergenceError when a sum over all processes is NaN or infinite; all processes see the same sums.

    `item_names` turns domains and rows into names, `gathered` joins the names of all processes.
    """
    broken = [name for name, total in totals.items() if not torch.isfinite(total).all()]
    if not broken:
        return
    with torch.no_grad():
        views = task.views(batch)
        own = task.recommender.item_encoder(batch.items)  # the views may hold items of other processes
    is_broken_U = ~torch.isfinite(own.fused_UD).all(dim=1)
    is_broken_B = ~torch.isfinite(views.hidden_BLD).flatten(1).all(dim=1)
    items = gathered(item_names(batch.items.domain_U[is_broken_U], batch.items.row_U[is_broken_U]))
    users = gathered([batch.user_id[place] for place in is_broken_B.nonzero()[:, 0].tolist()])
    where = f"vectors of items {joined(items)}" if items else f"states of users {joined(users)}" if users else "a loss"
    raise DivergenceError(
        f"step {step}: loss of {joined(broken)} is not finite; first seen in {where}; no update was made. "
        f"{ADVICE}, or look at what is named here"
    )


def stop_if_gradient_nonfinite(norm: Tensor | float | None, step: int) -> None:
    """DivergenceError when the norm of all gradients is NaN or infinite; it is the same in all processes."""
    if norm is not None and not math.isfinite(norm):
        raise DivergenceError(f"step {step}: a gradient is not finite, every loss is; no update was made. {ADVICE}")


def stop_if_weights_nonfinite(task: TrainingTask, step: int) -> None:
    """DivergenceError when the last update made a weight NaN or infinite, which no loss has met yet."""
    broken = [name for name, weight in task.named_parameters() if not torch.isfinite(weight).all()]
    if broken:
        raise DivergenceError(f"step {step}: its update left {joined(broken)} not finite. {ADVICE}")
