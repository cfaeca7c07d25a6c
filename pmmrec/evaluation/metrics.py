"""Compute HR, NDCG and MRR at a cut-off, for each user and on average."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CUTOFFS = (10, 20, 50)
MEASURES = ("hr", "ndcg", "mrr")


def metric_name(measure: str, cutoff: int) -> str:
    """The name of a metric in logs, files and recipes, such as `hr@10`."""
    return f"{measure}@{cutoff}"


def user_metrics(rank_Q: Tensor, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, Tensor]:
    """Each metric of each query, `(Q,)` float64 in 0..1, from ranks (1 is best, 0 a miss).

    Each query has one relevant item, so the ideal DCG is 1. Within the first k ranks NDCG@k = 1 / log2(rank + 1)
    and MRR@k = 1 / rank; beyond them both are 0.
    """
    place_Q = rank_Q.double().clamp(min=1)
    gains_Q = {"hr": torch.ones_like(place_Q), "ndcg": 1 / torch.log2(place_Q + 1), "mrr": 1 / place_Q}
    metrics = {}
    for cutoff in cutoffs:
        is_hit_Q = (rank_Q >= 1) & (rank_Q <= cutoff)
        for measure in MEASURES:
            metrics[metric_name(measure, cutoff)] = torch.where(is_hit_Q, gains_Q[measure], 0.0)
    return metrics


def mean_metrics(rank_Q: Tensor, cutoffs: Sequence[int] = CUTOFFS) -> dict[str, float]:
    """The mean of each metric over the queries, in 0..1."""
    return {name: values_Q.mean().item() for name, values_Q in user_metrics(rank_Q, cutoffs).items()}
