"""Scores of all items for a few queries at once, in the forms that are counted fastest."""
# b queries of a block, N items, C columns (items that always score the same share one), P pairs of a query and an item,
# t queries of a block that are asked for, H entries of a sparse block, M columns of several items.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.packing import Ints

if TYPE_CHECKING:
    from scipy import sparse

DENSE_SHARE = 0.05  # of stored scores in a block; with more of them a matrix is faster

Numbers: TypeAlias = NDArray[Any]  # scores, in the dtype in which they are compared
NotFinite: TypeAlias = tuple[int, int, float]  # a query of a block, an item, and its score that is not finite


class ScoreBlock(ABC):
    """Scores of all items for the queries of one block, which are numbered from 0."""

    num_queries: int

    @abstractmethod
    def first_not_finite(self) -> NotFinite | None:
        """The first score that is not finite, query by query; None if all are finite."""

    @abstractmethod
    def of(self, query_P: Ints, item_P: Ints) -> Numbers:
        """The scores of pairs of a query and an item, `(P,)`."""

    @abstractmethod
    def count(self, query_t: Ints, score_t: Numbers, *, equal: bool) -> Ints:
        """How many counted items score `score_t` or higher, or exactly `score_t`. No query stands twice."""


Blocks: TypeAlias = Callable[[slice], Iterator[ScoreBlock]]  # a slice of the queries -> their scores, block by block


class ItemScores(ABC):
    """Scores of all items for slices of the queries: one matrix when called, blocks where they are only counted."""

    @abstractmethod
    def __call__(self, rows: slice) -> Tensor:
        """Scores of all items, `(q, N)`; larger is better."""

    @abstractmethod
    def blocks(self, is_counted_N: NDArray[np.bool_]) -> Blocks:
        """The same scores in blocks, which count the items of `is_counted_N`. A block is valid until the next one."""


@dataclass(frozen=True)
class ScoreColumns:
    """Which column of a score matrix holds which item: columns of one counted item, of several, then of none."""

    item_C: Ints  # the first item of each column
    column_N: Ints  # the column of each item
    num_single: int  # columns of one counted item
    size_M: NDArray[np.float64]  # number of counted items of the columns behind these that have several

    @classmethod
    def of(cls, first_N: Ints, is_counted_N: NDArray[np.bool_]) -> ScoreColumns:
        """`first_N`: for each item the first one that always scores the same."""
        item_C = np.flatnonzero(first_N == np.arange(len(first_N)))
        size_C = np.bincount(first_N[is_counted_N], minlength=len(first_N))[item_C]
        order_C = np.argsort(np.select([size_C == 1, size_C > 1], [0, 1], 2), kind="stable")
        item_C, size_C = item_C[order_C], size_C[order_C]
        column_N = np.empty_like(first_N)
        column_N[item_C] = np.arange(len(item_C))
        return cls(item_C, column_N[first_N], int((size_C == 1).sum()), size_C[size_C > 1].astype(np.float64))

    @cached_property
    def are_items(self) -> bool:
        """Whether each item is its own column, in the order of the items."""
        return np.array_equal(self.item_C, np.arange(len(self.column_N)))

    @property
    def several(self) -> slice:
        return slice(self.num_single, self.num_single + len(self.size_M))

    def num(self, is_in_C: NDArray[np.bool_]) -> int:
        """How many counted items are in the selected columns."""
        num_single = int(np.count_nonzero(is_in_C[: self.num_single]))
        return (
            num_single + int(is_in_C[self.several].astype(np.float64) @ self.size_M) if len(self.size_M) else num_single
        )


class MatrixBlock(ScoreBlock):
    """A matrix of scores. On a CPU rows are counted one at a time, because a row stays in the cache of a core."""

    def __init__(self, score_bC: Tensor, columns: ScoreColumns) -> None:
        self._score_bC = score_bC.float() if score_bC.dtype == torch.bfloat16 else score_bC  # numpy has no bfloat16
        self._columns, self.num_queries = columns, len(score_bC)

    def first_not_finite(self) -> NotFinite | None:
        if all(bool(torch.isfinite(value)) for value in torch.aminmax(self._score_bC)):
            return None  # the extremes of scores with a NaN are NaN
        query = int(torch.nonzero(~torch.isfinite(self._score_bC).all(dim=1))[0])
        score_N = self._score_bC[query].cpu()[torch.from_numpy(self._columns.column_N)]
        item = int(torch.nonzero(~torch.isfinite(score_N))[0])
        return query, item, float(score_N[item])

    def of(self, query_P: Ints, item_P: Ints) -> Numbers:
        column_P = self._columns.column_N[item_P]
        if self._score_bC.device.type == "cpu":
            found: Numbers = self._score_bC.numpy()[query_P, column_P]
            return found
        at = (torch.from_numpy(place).to(self._score_bC.device) for place in (query_P, column_P))
        on_device: Numbers = self._score_bC[tuple(at)].cpu().numpy()
        return on_device

    def count(self, query_t: Ints, score_t: Numbers, *, equal: bool) -> Ints:
        if self._score_bC.device.type == "cpu":
            return count_by_rows(self._score_bC.numpy(), self._columns, query_t, score_t, equal=equal)
        return count_at_once(self._score_bC, self._columns, query_t, score_t, equal=equal)


def count_by_rows(score_bC: Numbers, columns: ScoreColumns, query_t: Ints, score_t: Numbers, *, equal: bool) -> Ints:
    """What `ScoreBlock.count` returns, row by row."""
    compare = np.equal if equal else np.greater_equal
    is_in_C = np.empty(score_bC.shape[1], dtype=bool)
    num_t = np.empty(len(query_t), dtype=np.int64)
    for place, (query, score) in enumerate(zip(query_t, score_t, strict=True)):
        compare(score_bC[query], score, out=is_in_C)
        num_t[place] = columns.num(is_in_C)
    return num_t


def count_at_once(score_bC: Tensor, columns: ScoreColumns, query_t: Ints, score_t: Numbers, *, equal: bool) -> Ints:
    """What `ScoreBlock.count` returns, for all rows at once: fast on a GPU."""
    device, compare = score_bC.device, torch.eq if equal else torch.ge
    score_tC = score_bC if len(query_t) == len(score_bC) else score_bC[torch.from_numpy(query_t).to(device)]
    is_in_tC = compare(score_tC, torch.from_numpy(score_t).to(device)[:, None])
    num_t = is_in_tC[:, : columns.num_single].sum(dim=1)
    if len(columns.size_M):
        size_M = torch.from_numpy(columns.size_M.astype(np.int64)).to(device)
        num_t += torch.where(is_in_tC[:, columns.several], size_M, 0).sum(dim=1)
    found: Ints = num_t.cpu().numpy()
    return found


class SharedScores(ItemScores):
    """Scores that are the same for every query."""

    def __init__(self, score_N: NDArray[np.float64]) -> None:
        self._score_N = score_N

    def __call__(self, rows: slice) -> Tensor:
        return torch.from_numpy(self._score_N).expand(rows.stop - rows.start, -1)

    def blocks(self, is_counted_N: NDArray[np.bool_]) -> Blocks:
        rising = np.sort(self._score_N[is_counted_N])
        return lambda rows: iter([_SharedBlock(self._score_N, rising, rows.stop - rows.start)])


class _SharedBlock(ScoreBlock):
    def __init__(self, score_N: Numbers, rising: Numbers, num_queries: int) -> None:
        """`rising`: the scores of the counted items, sorted."""
        self._score_N, self._rising, self.num_queries = score_N, rising, num_queries

    def first_not_finite(self) -> NotFinite | None:
        wrong = np.flatnonzero(~np.isfinite(self._score_N))
        return (0, int(wrong[0]), float(self._score_N[wrong[0]])) if len(wrong) else None

    def of(self, query_P: Ints, item_P: Ints) -> Numbers:  # noqa: ARG002 - the same for every query
        found: Numbers = self._score_N[item_P]
        return found

    def count(self, query_t: Ints, score_t: Numbers, *, equal: bool) -> Ints:  # noqa: ARG002 - the same for every query
        below_t = np.searchsorted(self._rising, score_t, side="left")
        upto_t = np.searchsorted(self._rising, score_t, side="right") if equal else len(self._rising)
        found: Ints = upto_t - below_t
        return found


class SparseScores(ItemScores):
    """Scores of which many are zero; a block where few are is counted as a matrix."""

    def __init__(self, score: Callable[[slice], sparse.csr_array]) -> None:
        """`score`: a slice of the queries -> their scores `(q, N)`; no pair stands twice."""
        self._score = score

    def __call__(self, rows: slice) -> Tensor:
        return torch.from_numpy(self._score(rows).toarray())

    def blocks(self, is_counted_N: NDArray[np.bool_]) -> Blocks:
        columns = ScoreColumns.of(np.arange(len(is_counted_N)), is_counted_N)

        def block(rows: slice) -> ScoreBlock:
            score_bN = self._score(rows)
            if score_bN.nnz < DENSE_SHARE * np.prod(score_bN.shape):
                return _SparseBlock(score_bN, is_counted_N)
            dense_bN = torch.from_numpy(score_bN.toarray())
            return MatrixBlock(
                dense_bN if columns.are_items else dense_bN[:, torch.from_numpy(columns.item_C)], columns
            )

        return lambda rows: iter([block(rows)])


class _SparseBlock(ScoreBlock):
    def __init__(self, score_bN: sparse.csr_array, is_counted_N: NDArray[np.bool_]) -> None:
        self.num_queries, self._num_items = score_bN.shape
        query_H, item_H = np.repeat(np.arange(self.num_queries), np.diff(score_bN.indptr)), score_bN.indices
        key_H = query_H * self._num_items + item_H
        order_H = np.argsort(key_H, kind="stable")
        self._key_H, self._sorted_H = key_H[order_H], score_bN.data[order_H]
        is_counted_H = is_counted_N[item_H]
        self._query_H, self._score_H = query_H[is_counted_H], score_bN.data[is_counted_H]
        num_stored_b = np.bincount(self._query_H, minlength=self.num_queries)
        self._num_zero_b = int(is_counted_N.sum()) - num_stored_b  # zeros that are not stored

    def first_not_finite(self) -> NotFinite | None:
        wrong = np.flatnonzero(~np.isfinite(self._sorted_H))
        if not len(wrong):
            return None
        query, item = divmod(int(self._key_H[wrong[0]]), self._num_items)
        return query, item, float(self._sorted_H[wrong[0]])

    def of(self, query_P: Ints, item_P: Ints) -> Numbers:
        key_P = query_P * self._num_items + item_P
        place_P = np.searchsorted(self._key_H, key_P)
        found = np.zeros(len(key_P), dtype=self._sorted_H.dtype)
        is_stored_P = place_P < len(self._key_H)
        is_stored_P[is_stored_P] = self._key_H[place_P[is_stored_P]] == key_P[is_stored_P]
        found[is_stored_P] = self._sorted_H[place_P[is_stored_P]]
        return found

    def count(self, query_t: Ints, score_t: Numbers, *, equal: bool) -> Ints:
        num_stored_t = count_pairs(self._query_H, self._score_H, query_t, score_t, equal=equal)
        takes_zero_t = score_t == 0 if equal else score_t <= 0
        found: Ints = num_stored_t + np.where(takes_zero_t, self._num_zero_b[query_t], 0)
        return found


def count_pairs(query_P: Ints, score_P: Numbers, query_t: Ints, score_t: Numbers, *, equal: bool) -> Ints:
    """For each of some queries, how many of its pairs score `score_t` or higher, or exactly `score_t`."""
    place_b = np.full(max(query_P.max(initial=0), query_t.max(initial=0)) + 1, -1)
    place_b[query_t] = np.arange(len(query_t))
    place_P = place_b[query_P]
    place_A, score_A = place_P[place_P >= 0], score_P[place_P >= 0]  # of the queries that are asked for
    is_in_A = score_A == score_t[place_A] if equal else score_A >= score_t[place_A]
    found: Ints = np.bincount(place_A[is_in_A], minlength=len(query_t))
    return found


def distinct_pairs(offset_B: Ints, item_H: Ints, num_items: int) -> tuple[Ints, Ints]:
    """Each list i, which holds item_H[offset_B[i]:offset_B[i+1]], with each of its items, once and in order."""
    list_H = np.repeat(np.arange(len(offset_B) - 1), np.diff(offset_B))
    pair_H = np.sort(list_H * num_items + item_H, kind="stable")  # ten times as fast as np.unique, which hashes
    is_first_H = np.ones(len(pair_H), dtype=bool)
    np.not_equal(pair_H[1:], pair_H[:-1], out=is_first_H[1:])
    list_P = list_H[is_first_H]  # lists lie one after another in either order
    return list_P, pair_H[is_first_H] - list_P * num_items
