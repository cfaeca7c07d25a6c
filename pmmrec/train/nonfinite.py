"""What happens when a loss is no number: no update, and the items and users that caused it are named."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from pmmrec.contracts import Batch
from pmmrec.errors import DivergenceError
from pmmrec.train.processes import joined
from pmmrec.train.task import TrainingTask


def stop_if_nonfinite(
    totals: Mapping[str, Tensor],
    task: TrainingTask,
    batch: Batch,
    item_names: Callable[[Tensor, Tensor], list[str]],
    step: int,
) -> None:
    """DivergenceError when a sum over all processes is NaN or infinite; all processes see the same sums."""
    broken = [name for name, total in totals.items() if not torch.isfinite(total).all()]
    if not broken:
        return
    with torch.no_grad():
        fused_UD = task.recommender.item_encoder(batch.items).fused_UD
    is_broken_U = ~torch.isfinite(fused_UD).all(dim=1)
    items = item_names(batch.items.domain_U[is_broken_U], batch.items.row_U[is_broken_U])
    place = f"items {joined(items)}" if items else f"users {joined(batch.user_id)}"
    raise DivergenceError(
        f"step {step}: loss of {joined(broken)} is not finite; first seen at {place}; no update was made. "
        "Lower train.optimizer.learning_rate, train in fp32 or bf16, or look at these items"
    )
