"""Choose the weights of a blend on the validation targets."""
# Q queries, q queries of a chunk, N items of the catalogue.

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.data.splits import Holdout, Split
from pmmrec.errors import DataError
from pmmrec.evaluation.baselines import ItemKNN
from pmmrec.evaluation.blend import MAX_WEIGHT, BlendConfig, refuse_large
from pmmrec.evaluation.catalogue import users_at_once
from pmmrec.evaluation.metrics import mean_metrics
from pmmrec.evaluation.ranking import ScoreRows, Seen, rank_targets
from pmmrec.evaluation.tuned_baselines import METRIC, tuned_item_knn

POPULARITIES = (0.0, 0.25, 0.5, 1.0, 2.0)  # in standard deviations of a user's scores, for one unit of log(1 + count)
COOCCURRENCES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # the same for the highest score of item-kNN
DIGITS = 3  # of a weight


@dataclass(frozen=True)
class LearnedBlend:
    """The weights that rank the validation targets best, the first of equal ones.

    Attributes:
        config: The settings.
        validation: NDCG@10 of the validation targets under them.
        num_tried: How many pairs of weights were tried.
    """

    config: BlendConfig
    validation: float
    num_tried: int


def learned_blend(
    score: ScoreRows, split: Split, holdout: Holdout, seen: Seen, is_readable_N: NDArray[np.bool_]
) -> LearnedBlend:
    """Try a small grid of weights; item-kNN has the neighbourhood and shrinkage that suit these targets alone best.

    Args:
        score: Scores of the model without popularity, for slices of the queries of `holdout`.
        split: Whose training part is counted.
        holdout: Validation targets.
        seen: Whether items of the history are candidates.
        is_readable_N: Which items the model can read.

    Raises DataError where the split has no validation target, MachineError as `Blend.of_split`.
    """
    if not holdout.num_queries:
        raise DataError(
            f"{split.domain.folder}: {split.no_query}, so there is no validation target to choose the weights of a "
            "blend by; give the weights, or leave --blend out"
        )
    refuse_large(split.domain)
    knn: dict[str, Any] = dict(tuned_item_knn(split, seen).settings)
    chunk, num_items = users_at_once(split.domain.num_items), split.domain.num_items
    near = ItemKNN(split.train_offsets, split.train_items, num_items, **knn).after(
        holdout.history_offsets, holdout.history_items
    )
    log_count_N = np.log1p(split.train_counts)
    configs: list[BlendConfig] = []
    ranks: list[list[Tensor]] = []
    for rows in _chunks(holdout.num_queries, chunk):
        part, score_qN, near_qN = _part(holdout, rows), score(rows), near(rows).toarray()
        configs = configs or _grid(score_qN, near_qN, knn)
        ranks = ranks or [[] for _ in configs]
        for place, config in enumerate(configs):
            prior_N = torch.from_numpy(config.popularity * log_count_N).to(score_qN)
            blended_qN = score_qN + torch.from_numpy(config.cooccurrence * near_qN).to(score_qN) + prior_N
            rules: dict[str, Any] = {"seen": seen, "chunk": len(blended_qN), "is_readable_N": is_readable_N}
            found = rank_targets(part, num_items, partial(_known, blended_qN), **rules)
            ranks[place].append(torch.stack((found.rank, found.query + rows.start)))
    figures = [mean_metrics(*torch.cat(parts, dim=1))[METRIC] for parts in ranks]
    best = int(np.argmax(figures))
    return LearnedBlend(configs[best], figures[best], len(configs))


def _grid(score_qN: Tensor, near_qN: NDArray[np.float64], knn: dict[str, Any]) -> list[BlendConfig]:
    """Pairs of weights on the scale of some users' scores, the smallest first.

    All are 0 where scores have no spread, as of a single item, and where they are not finite, which ranking refuses.
    """
    spread = float(score_qN.double().std(dim=1).mean()) if score_qN.shape[1] > 1 else 0.0
    spread = spread if math.isfinite(spread) else 0.0
    highest = float(near_qN.max(axis=1).mean())
    nears = [_rounded(near * spread / highest) for near in COOCCURRENCES] if highest > 0 else [0.0]
    return [
        BlendConfig(cooccurrence=near, popularity=_rounded(popularity * spread), **(knn if near else {}))
        for near, popularity in product(nears, POPULARITIES)
    ]


def _rounded(weight: float) -> float:
    return float(f"{min(weight, MAX_WEIGHT):.{DIGITS}g}")


def _known(score_qN: Tensor, rows: slice) -> Tensor:
    return score_qN[rows]


def _chunks(number: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, number)) for start in range(0, number, size))


def _part(holdout: Holdout, rows: slice) -> Holdout:
    """Some queries of a holdout, numbered from 0."""

    def lists(offsets: NDArray[np.int64], values: Any) -> tuple[NDArray[np.int64], Any]:
        of_part = offsets[rows.start : rows.stop + 1]
        return of_part - of_part[0], values[of_part[0] : of_part[-1]]

    changes: dict[str, Any] = {"user_index": holdout.user_index[rows]}
    changes["target_offsets"], changes["target"] = lists(holdout.target_offsets, holdout.target)
    changes["history_offsets"], changes["history_items"] = lists(holdout.history_offsets, holdout.history_items)
    if holdout.candidate_offsets is not None:
        changes["candidate_offsets"], changes["candidates"] = lists(holdout.candidate_offsets, holdout.candidates)
    return dataclasses.replace(holdout, **changes)
