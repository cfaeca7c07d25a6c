"""Baselines that every model should beat: random, popularity, last-item Markov and item-kNN.

They count interactions of the training part only.
"""
# Q queries, q queries of one chunk, N items, V users of the domain.

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.data.splits import Holdout, Split
from pmmrec.evaluation.ranking import Rows, ScoreRows
from pmmrec.evaluation.scores import SharedScores, SparseScores

if TYPE_CHECKING:
    from scipy import sparse

Baseline = Callable[[Split, Holdout], ScoreRows]


def random_baseline(split: Split, holdout: Holdout, *, seed: int = 0) -> ScoreRows:  # noqa: ARG001 - all baselines share one signature
    """Score each user and item by a random number that does not depend on the chunk. Its HR@k is about k / N."""
    num_items = split.domain.num_items

    def score(rows: slice) -> Tensor:
        drawn = np.random.Generator(np.random.PCG64(seed).advance(rows.start * num_items))  # one draw for each number
        return torch.from_numpy(drawn.random((rows.stop - rows.start, num_items)))

    return score


def popularity_baseline(split: Split, holdout: Holdout) -> ScoreRows:  # noqa: ARG001 - all baselines share one signature
    """Score an item by how often it occurs in training. Ties count against the target, which lowers its metrics."""
    return SharedScores(split.train_counts.astype(np.float64))


def markov_baseline(split: Split, holdout: Holdout) -> ScoreRows:
    """Score an item by how often it directly followed the last item of the history, in training."""
    num_items, items = split.domain.num_items, split.train_items.astype(np.int64)
    is_last = np.zeros(len(items), dtype=bool)
    is_last[split.train_offsets[1:] - 1] = True
    before = np.flatnonzero(~is_last)
    follows_NN = _sums(np.ones(len(before)), items[before], items[before + 1], (num_items, num_items))
    last_Q = holdout.history_items[holdout.history_offsets[1:] - 1]
    return SparseScores(lambda rows: follows_NN[last_Q[rows]])


def item_knn_baseline(
    split: Split,
    holdout: Holdout,
    *,
    shrinkage: float = 10.0,
    decay: float = 0.9,
    num_neighbours: int | None = None,
) -> ScoreRows:
    """Score an item by the sum of its cosines with the items of the history, recent ones weighing more.

    Cosines are between columns of the binary user-item matrix of training, c_ij / (sqrt(c_i c_j) + shrinkage). An item
    is not a neighbour of itself; every other item is, or the `num_neighbours` of the largest cosines (of equal ones the
    lower rows). `shrinkage` lowers the weight of pairs that few users share. The
    history's last item weighs 1, the one before it `decay`, the one before that `decay` squared. With shrinkage 0 and
    decay 1 this is the textbook's item-kNN, and much weaker.
    """
    knn = ItemKNN(
        *(split.train_offsets, split.train_items, split.domain.num_items),
        shrinkage=shrinkage,
        decay=decay,
        num_neighbours=num_neighbours,
    )
    return SparseScores(knn.after(holdout.history_offsets, holdout.history_items))


class ItemKNN:
    """The similar items of each item, by who touched both; settings as in `item_knn_baseline`.

    User u touched `items[offsets[u]:offsets[u + 1]]`; an item that nobody touched is similar to none.
    """

    def __init__(
        self,
        offsets: Rows,
        items: Rows,
        num_items: int,
        *,
        shrinkage: float = 10.0,
        decay: float = 0.9,
        num_neighbours: int | None = None,
    ) -> None:
        num_users = len(offsets) - 1
        user = np.repeat(np.arange(num_users), np.diff(offsets))
        self._similar_NN = _cosines(incidence(user, items, (num_users, num_items)), shrinkage)
        if num_neighbours is not None:
            self._similar_NN = _nearest(self._similar_NN, num_neighbours)
        self._decay = decay

    def after(self, offsets: Rows, items: Rows) -> Callable[[slice], sparse.csr_array]:
        """Scores `(q, N)` for slices of histories; that of query i is `items[offsets[i]:offsets[i + 1]]`."""
        num_queries = len(offsets) - 1
        query = np.repeat(np.arange(num_queries), np.diff(offsets))
        age = offsets[1:][query] - 1 - np.arange(len(query))
        weight = np.power(self._decay, age, dtype=np.float64)
        history_QN = _sums(weight, query, items, (num_queries, self._similar_NN.shape[0]))
        return lambda rows: history_QN[rows] @ self._similar_NN


SCORES_AT_ONCE = 1 << 21  # users x items that a baseline scores at once: 16 MB
MAX_HELD = 200_000_000  # interactions that a baseline may hold in memory at once, about 30 bytes each

BASELINES: Mapping[str, Baseline] = {
    "random": random_baseline,
    "popularity": popularity_baseline,
    "last-item Markov": markov_baseline,
    "item-kNN": item_knn_baseline,
}


def num_scored_at_once(num_items: int) -> int:
    """How many users a baseline scores at a time: so many that their scores, in float64, stay in a cache."""
    return max(1, min(1024, SCORES_AT_ONCE // max(1, num_items)))


def baselines_for(split: Split) -> dict[str, Baseline]:
    """The baselines that fit in memory for this domain; of a very large one, those that only count items."""
    holds_all = {"last-item Markov", "item-kNN"} if split.domain.num_interactions > MAX_HELD else set()
    return {name: baseline for name, baseline in BASELINES.items() if name not in holds_all}


def left_out(split: Split) -> str | None:
    """A warning that names the baselines that do not fit in memory for this domain; None if all fit."""
    names = [name for name in BASELINES if name not in baselines_for(split)]
    if not names:
        return None
    num = split.domain.num_interactions
    return f"{split.domain.name}: {' and '.join(names)} would hold {num:,} interactions in memory, and are left out"


def _cosines(is_in_VN: sparse.csr_array, shrinkage: float) -> sparse.csr_array:
    from scipy import sparse

    count_N = np.asarray(is_in_VN.sum(axis=0)).ravel()
    both = (is_in_VN.T @ is_in_VN).tocoo()
    i, j = both.coords
    cosine = both.data / (np.sqrt(count_N[i] * count_N[j]) + shrinkage)
    cosine[i == j] = 0.0
    return sparse.csr_array((cosine, (i, j)), shape=both.shape)


def _nearest(similar_NN: sparse.csr_array, number: int) -> sparse.csr_array:
    """The largest entries of each row."""
    from scipy import sparse

    row = np.repeat(np.arange(similar_NN.shape[0]), np.diff(similar_NN.indptr))
    order = np.lexsort((similar_NN.indices, -similar_NN.data, row))
    place = np.arange(len(order)) - similar_NN.indptr[row]  # of each sorted entry in its row
    kept = order[place < number]
    return sparse.csr_array((similar_NN.data[kept], (row[kept], similar_NN.indices[kept])), shape=similar_NN.shape)


def incidence(row: Rows, column: Rows, shape: tuple[int, int]) -> sparse.csr_array:
    """A binary matrix: 1 at each pair that occurs, however often."""
    matrix = _sums(np.ones(len(row)), row, column, shape)
    matrix.data[:] = 1.0
    return matrix


def _sums(value: NDArray[np.float64], row: Rows, column: Rows, shape: tuple[int, int]) -> sparse.csr_array:
    """A matrix of values at their pairs; values of the same pair are added."""
    from scipy import sparse

    matrix = sparse.csr_array((value, (row, column)), shape=shape)
    matrix.sum_duplicates()
    return matrix
