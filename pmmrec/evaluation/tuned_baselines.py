"""Baselines whose settings are chosen on the validation targets: EASE and item-kNN.

They learn from the training part alone, and cost nothing unless they are asked for.
"""
# Q queries, q queries of one chunk, N items, V users of the domain.

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import psutil
import torch
from torch import Tensor

from pmmrec.data.splits import Holdout, Split
from pmmrec.errors import DataError, MachineError
from pmmrec.evaluation.baselines import Baseline, incidence, item_knn_baseline, num_scored_at_once
from pmmrec.evaluation.metrics import mean_metrics
from pmmrec.evaluation.ranking import ScoreRows, Seen, rank_targets

METRIC = "ndcg@10"  # of the validation targets, by which settings are chosen
NUM_MATRICES = 3  # of all pairs of items that EASE holds at once: the Gram matrix, its factor and the inverse
GB = 1e9

Settings: TypeAlias = Mapping[str, float | None]
EASE_GRID: tuple[Settings, ...] = tuple(
    {"regularisation": value} for value in (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
)
KNN_GRID: tuple[Settings, ...] = tuple(
    {"num_neighbours": number, "shrinkage": value}
    for number in (20, 50, 100, 200, None)
    for value in (0.0, 10.0, 50.0, 200.0)
)


@dataclass(frozen=True)
class TunedBaseline:
    """A baseline with the settings that rank the validation targets best.

    Attributes:
        settings: The first of the best ones.
        validation: NDCG@10 of the validation targets under them.
        num_tried: How many settings were tried.
        baseline: The baseline with them.
    """

    settings: Settings
    validation: float
    num_tried: int
    baseline: Baseline


class EASE:
    """Score items by a linear model of the history, whose weights have a closed form (arXiv 1905.03375, eq. 8).

    With X the binary user-item matrix of training, G = X^T X and P = (G + regularisation I)^-1, an item i of the
    history adds B_ij = -P_ij / P_jj to the score of another item j, and nothing to its own. The order of the history
    does not count. In float64, on the CPU.

    Args:
        split: Whose training part is learned.
        free_bytes: Memory for the matrices of all pairs of items; None: what the machine has free.

    Raises MachineError where these matrices do not fit.
    """

    def __init__(self, split: Split, free_bytes: int | None = None) -> None:
        _refuse_many_items(split, free_bytes)
        num_users, num_items = len(split.train_offsets) - 1, split.domain.num_items
        user = np.repeat(np.arange(num_users), np.diff(split.train_offsets))
        is_in_VN = incidence(user, split.train_items, (num_users, num_items))
        self._gram_NN = torch.from_numpy((is_in_VN.T @ is_in_VN).toarray())

    def weights(self, regularisation: float) -> Tensor:
        """B, `(N, N)`: rows are items of the history, columns those that are scored."""
        factor_NN = self._gram_NN.clone()
        factor_NN.diagonal().add_(regularisation)
        factor_NN = torch.linalg.cholesky(factor_NN)
        weight_NN = torch.cholesky_inverse(factor_NN)
        weight_NN /= -weight_NN.diagonal().clone()
        return weight_NN.fill_diagonal_(0.0)

    def baseline(self, regularisation: float) -> Baseline:
        """EASE with this regularisation; its weights are computed now."""
        weight_NN = self.weights(regularisation).numpy()

        def score(split: Split, holdout: Holdout) -> ScoreRows:
            query = np.repeat(np.arange(holdout.num_queries), np.diff(holdout.history_offsets))
            is_in_QN = incidence(query, holdout.history_items, (holdout.num_queries, split.domain.num_items))
            return lambda rows: torch.from_numpy(is_in_QN[rows] @ weight_NN)

        return score


def check_tunable(split: Split, free_bytes: int | None = None) -> None:
    """Raise before anything is computed what `tuned_ease` and `tuned_item_knn` would raise."""
    _refuse_many_items(split, free_bytes)
    if not split.has_query("validation"):
        raise DataError(
            f"{split.domain.folder}: {split.no_query}, so there is no validation target to choose the settings of "
            "baselines by; leave tuned baselines out"
        )


def _refuse_many_items(split: Split, free_bytes: int | None) -> None:
    """MachineError where the matrices of all pairs of items do not fit."""
    num_items = split.domain.num_items
    needed = NUM_MATRICES * 8 * num_items**2
    free = psutil.virtual_memory().available if free_bytes is None else free_bytes
    if needed > free:
        raise MachineError(
            f"EASE: {num_items:,} items of {split.domain.name} need {needed / GB:,.1f} GB for all pairs of them, and "
            f"{free / GB:,.1f} GB are free; leave tuned baselines out, or use more memory"
        )


def tuned_ease(split: Split, seen: Seen = "exclude") -> TunedBaseline:
    """EASE with the best regularisation. Raises as `check_tunable`."""
    check_tunable(split)
    return _best(split, seen, EASE_GRID, EASE(split).baseline)


def tuned_item_knn(split: Split, seen: Seen = "exclude") -> TunedBaseline:
    """item-kNN with the best neighbourhood and shrinkage. For a split of which `check_tunable` is content."""
    return _best(split, seen, KNN_GRID, lambda **settings: partial(item_knn_baseline, **settings))


TUNED_BASELINES: Mapping[str, Callable[[Split, Seen], TunedBaseline]] = {
    "EASE": tuned_ease,
    "tuned item-kNN": tuned_item_knn,
}


def _best(split: Split, seen: Seen, grid: Sequence[Settings], made: Callable[..., Baseline]) -> TunedBaseline:
    holdout, num_items = split.holdout("validation"), split.domain.num_items

    def validated(settings: Settings) -> float:
        score = made(**settings)(split, holdout)
        ranks = rank_targets(holdout, num_items, score, seen=seen, chunk=num_scored_at_once(num_items))
        return mean_metrics(ranks.rank, ranks.query)[METRIC]

    figures = [validated(settings) for settings in grid]
    best = int(np.argmax(figures))
    return TunedBaseline(grid[best], figures[best], len(grid), made(**grid[best]))
