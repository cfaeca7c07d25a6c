"""Rank the held-out items of each user among the whole catalogue."""
# Q queries (users of a holdout), T targets of all queries. q queries of one chunk, b queries and t targets of a block.
# N items of the catalogue, P pairs of a query and an item.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.atomic import whole_file
from pmmrec.data.splits import Holdout
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.ids import ids_at
from pmmrec.evaluation.scores import (
    Blocks,
    ItemScores,
    MatrixBlock,
    ScoreBlock,
    ScoreColumns,
    count_pairs,
    distinct_pairs,
)
from pmmrec.evaluation.share import SINGLE_PROCESS, WorkerGroup, turns
from pmmrec.packing import Ints
from pmmrec.progress import Progress

Seen = Literal["exclude", "include"]
Rows = NDArray[np.int64] | NDArray[np.int32]
ScoreRows = (
    Callable[[slice], Tensor] | ItemScores
)  # a slice of the queries -> scores of all items (q, N); larger is better


@dataclass(frozen=True)
class Ranks:
    """The rank of each target of each query; all tensors are `(T,)` on the CPU, the targets of a query in a row."""

    query: Tensor  # int64, the query of the target, rising
    user_index: Tensor  # int64, user of the domain
    target: Tensor  # int64, item row
    rank: Tensor  # int64, 1 is best; 0: a miss, the target was not a candidate
    num_candidates: Tensor  # int64, items that were ranked, including the target unless it is a miss
    seen_target: Tensor  # bool, the target is already in the history
    num_tied: Tensor  # int64, candidates other than targets that score the same, if these were counted, else 0

    @property
    def num_targets(self) -> int:
        return self.rank.shape[0]

    @property
    def user_of_query(self) -> Tensor:
        """The user of each query, `(Q,)`."""
        is_first_T = torch.ones_like(self.query, dtype=torch.bool)
        is_first_T[1:] = self.query.diff() > 0
        return self.user_index[is_first_T]

    @property
    def seen_share(self) -> float:
        """Share of the targets that the user had seen before: with `exclude` no model can hit them."""
        return self.seen_target.double().mean().item()

    def where(self, is_in_T: NDArray[np.bool_]) -> Ranks:
        """The selected targets, in their order, with the ranks that they had among all."""
        chosen_T = torch.from_numpy(is_in_T)
        return Ranks(**{f.name: getattr(self, f.name)[chosen_T] for f in fields(Ranks)})


def rank_targets(
    holdout: Holdout,
    num_items: int,
    score: ScoreRows,
    *,
    seen: Seen = "exclude",
    chunk: int,
    is_readable_N: NDArray[np.bool_] | None = None,
    counts_ties: bool = False,
    group: WorkerGroup = SINGLE_PROCESS,
    progress: Progress | None = None,
) -> Ranks:
    """Rank each target among all items: 1 + the number of other candidates that score as high or higher.

    Ties count against the target, in the dtype of the scores. All targets of a query are candidates and have different
    ranks; targets that tie with one another are ranked in their order. `exclude`: items of the history are not
    candidates, and a target among them is a miss (rank 0). `include`: every item is a candidate. Under both, items
    outside `is_readable_N` are never candidates, because the model can read nothing of them, and neither are items
    outside the list of a query, where the holdout has lists. `counts_ties`: also count the candidates that tie with a
    target, which takes a second pass over the scores. Processes of a `group` share the chunks: all must call this, and
    all get every rank.

    `ItemScores` come in blocks that fit a cache, in which items that always score the same share a column. No mask is
    made: the items of a history are counted separately and subtracted. The ranks are those of a loop over all items.

    Raises DataError, in every process of the group, if there is no query or a score is not finite.
    """
    check_seen(seen)
    if not holdout.num_queries:
        raise DataError(f"{holdout.name}: there is no user to rank for")
    if is_readable_N is None:
        is_readable_N = np.ones(num_items, dtype=bool)
    figures = torch.zeros(len(fields(Ranks)), len(holdout.target) + 1, dtype=torch.int64)  # the last column: who failed
    failure: DataError | None = None
    blocks = _blocks_of(score, holdout, is_readable_N)
    for place, is_own in turns(-(-holdout.num_queries // chunk), group):
        start, stop = place * chunk, min((place + 1) * chunk, holdout.num_queries)
        try:
            for block in blocks(slice(start, stop)):
                rows = slice(start, start + block.num_queries)
                _check(block, holdout.user_index[rows], holdout.name)
                if is_own:
                    ranks = _rank_block(holdout, rows, block, seen, is_readable_N, counts_ties=counts_ties)
                    targets = slice(holdout.target_offsets[rows.start], holdout.target_offsets[rows.stop])
                    figures[:, targets] = torch.stack([getattr(ranks, f.name).long() for f in fields(Ranks)])
                start = rows.stop
        except DataError as error:
            if group.world == 1:
                raise
            failure, figures[:, -1] = error, 1  # the others are still working, and all stop together
        else:
            if progress is not None:
                progress("users ranked", stop, holdout.num_queries)
    figures = group.summed(figures)
    if failure is not None:
        raise failure
    if figures[0, -1]:
        raise DataError(f"{holdout.name}: scores of another process are not finite; it says which")
    query, user_index, target, rank, num_candidates, seen_target, num_tied = figures[:, :-1]
    return Ranks(query, user_index, target, rank, num_candidates, seen_target.bool(), num_tied)


def check_seen(seen: str) -> None:
    """RecipeError unless `seen` is one of the two rules."""
    if seen not in get_args(Seen):
        raise RecipeError(f"seen: {seen!r} is not a rule; choose {' or '.join(get_args(Seen))}")


def _check(block: ScoreBlock, user_index_b: Rows, name: str) -> None:
    """DataError unless all scores of a block are finite."""
    if wrong := block.first_not_finite():
        query, item, value = wrong
        where = f"{name}: user {int(user_index_b[query])}"
        raise DataError(f"{where}: item {item} scores {value}; scores must be finite, has the model diverged?")


def _blocks_of(score: ScoreRows, holdout: Holdout, is_readable_N: NDArray[np.bool_]) -> Blocks:
    """Scores in blocks; those of a plain function are one block for each slice."""
    if isinstance(score, ItemScores):
        return score.blocks(is_readable_N)
    num_items, plain = len(is_readable_N), score
    columns = ScoreColumns.of(np.arange(num_items), is_readable_N)

    def blocks(rows: slice) -> Iterator[ScoreBlock]:
        score_qN, num_queries = plain(rows), rows.stop - rows.start
        if score_qN.shape != (num_queries, num_items):
            expected = f"({num_queries}, {num_items})"
            raise DataError(f"{holdout.name}: scores have shape {tuple(score_qN.shape)}; {expected} is users x items")
        item_C = torch.from_numpy(columns.item_C).to(score_qN.device)
        yield MatrixBlock(score_qN if columns.are_items else score_qN[:, item_C], columns)

    return blocks


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a query of a block and an item, each once, by query and item."""

    query_P: Ints
    item_P: Ints
    num_items: int

    @classmethod
    def of(cls, offsets: Rows, items: Rows, rows: slice, num_items: int) -> _Pairs:
        """Query i of the block `rows` with each item of its list, items[offsets[i]:offsets[i+1]]."""
        offset_B = np.asarray(offsets[rows.start : rows.stop + 1]).astype(np.int64)
        item_H = np.asarray(items[offset_B[0] : offset_B[-1]]).astype(np.int64)
        return cls(*distinct_pairs(offset_B - offset_B[0], item_H, num_items), num_items)

    def where(self, is_in_P: NDArray[np.bool_]) -> _Pairs:
        return _Pairs(self.query_P[is_in_P], self.item_P[is_in_P], self.num_items)

    def has(self, query_R: Ints, item_R: Ints) -> NDArray[np.bool_]:
        """Which of other pairs are among these, `(R,)`."""
        key_P, key_R = self.query_P * self.num_items + self.item_P, query_R * self.num_items + item_R
        place_R = np.searchsorted(key_P, key_R)
        is_in_R = place_R < len(key_P)
        is_in_R[is_in_R] = key_P[place_R[is_in_R]] == key_R[is_in_R]
        return is_in_R


def _rank_block(
    holdout: Holdout,
    rows: slice,
    block: ScoreBlock,
    seen: Seen,
    is_readable_N: NDArray[np.bool_],
    *,
    counts_ties: bool,
) -> Ranks:
    offset = np.asarray(holdout.target_offsets[rows.start : rows.stop + 1]).astype(np.int64)
    query_t = np.repeat(np.arange(block.num_queries), np.diff(offset))
    item_t = np.asarray(holdout.target[offset[0] : offset[-1]]).astype(np.int64)
    known = _Pairs.of(holdout.history_offsets, holdout.history_items, rows, len(is_readable_N))
    is_seen_t = known.has(query_t, item_t)
    is_candidate_t = is_readable_N[item_t] & ~is_seen_t if seen == "exclude" else is_readable_N[item_t]
    hidden = known.where(is_readable_N[known.item_P] if seen == "exclude" else np.zeros(len(known.item_P), dtype=bool))
    listed: _Pairs | None = None
    if holdout.candidates is not None and holdout.candidate_offsets is not None:
        listed = _Pairs.of(holdout.candidate_offsets, holdout.candidates, rows, len(is_readable_N))
        listed = listed.where(is_readable_N[listed.item_P] & ~hidden.has(listed.query_P, listed.item_P))
        is_candidate_t &= listed.has(query_t, item_t)
    if listed is None:
        num_candidates_b = int(is_readable_N.sum()) - np.bincount(hidden.query_P, minlength=block.num_queries)
    else:
        num_candidates_b = np.bincount(listed.query_P, minlength=block.num_queries)
    apart = hidden if listed is None else listed  # pairs that are counted separately
    score_t, score_P = block.of(query_t, item_t), block.of(apart.query_P, apart.item_P)

    def count(now: Ints, *, equal: bool) -> Ints:
        query, score = query_t[now], score_t[now]
        among = count_pairs(apart.query_P, score_P, query, score, equal=equal)
        return among if listed is not None else block.count(query, score, equal=equal) - among

    rank_t, tied_t = np.zeros((2, len(item_t)), dtype=np.int64)
    place_t = np.arange(len(query_t)) - (offset - offset[0])[query_t]
    for place in range(int(np.diff(offset).max())):  # one target of each query at a time
        now = np.flatnonzero((place_t == place) & is_candidate_t)
        rank_t[now] = count(now, equal=False)  # counts the target too
        if counts_ties:
            tied_t[now] = count(now, equal=True)
    query, rank = torch.from_numpy(query_t), torch.from_numpy(rank_t)
    return Ranks(
        query=query + rows.start,
        user_index=torch.from_numpy(np.asarray(holdout.user_index[rows]).astype(np.int64)[query_t]),
        target=torch.from_numpy(item_t),
        rank=_apart(query, rank),
        num_candidates=torch.from_numpy(num_candidates_b[query_t]),
        seen_target=torch.from_numpy(is_seen_t),
        num_tied=_without_targets(query, rank, torch.from_numpy(tied_t)) if counts_ties else torch.zeros_like(rank),
    )


def _without_targets(query_t: Tensor, rank_t: Tensor, tied_t: Tensor) -> Tensor:
    """How many of the candidates that tie with a target are not targets; targets that tie have the same rank."""
    _, place_t, count = torch.unique(torch.stack([query_t, rank_t]), dim=1, return_inverse=True, return_counts=True)
    return torch.where(rank_t > 0, tied_t - count[place_t], 0)


def _apart(query_t: Tensor, rank_t: Tensor) -> Tensor:
    """Different ranks for targets that tie: each had counted all the others ahead of it, now only the earlier ones."""
    key_t = query_t * (int(rank_t.max()) + 1) + rank_t
    order = len(key_t) - 1 - key_t.flip(0).argsort(stable=True)  # of tied targets the last comes first
    num_later_t = torch.arange(len(order)) - torch.searchsorted(key_t[order], key_t[order])
    return torch.where(rank_t > 0, rank_t - torch.empty_like(rank_t).scatter_(0, order, num_later_t), 0)


def write_ranks(
    path: Path,
    ranks: Ranks,
    user_ids: pa.ChunkedArray,
    item_ids: pa.ChunkedArray,
    more: Mapping[str, NDArray[Any]] | None = None,
) -> None:
    """Write one row per target: user_id, item_id (the target), rank (0: a miss), seen_target. Whole or not at all.

    Where users have several queries that `place` in `more` does not tell apart, `query` is the number of each.

    `user_ids` and `item_ids` are those of the domain, `more` holds further columns `(T,)`. An older file is replaced.
    """
    columns = {
        "user_id": ids_at(user_ids, ranks.user_index),
        "item_id": ids_at(item_ids, ranks.target),
        "rank": pa.array(ranks.rank.numpy()),
        "seen_target": pa.array(ranks.seen_target.numpy()),
        **{name: pa.array(values) for name, values in (more or {}).items()},
    }
    user_Q = ranks.user_of_query.numpy()
    if "place" not in columns and len(np.unique(user_Q)) < len(user_Q):
        columns["query"] = pa.array(ranks.query.numpy())
    with whole_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def read_ranks(path: Path, holdout: Holdout, user_ids: pa.ChunkedArray, item_ids: pa.ChunkedArray) -> Tensor:
    """Read the rank of each target of `holdout`, `(T,)` int64, from a file of `write_ranks` for the same domain.

    Raises DataError if the file cannot be read or holds other users or targets, or where a user has several queries.
    """
    try:
        table = pq.read_table(path, columns=["user_id", "item_id", "rank"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as ranks: {error}") from error
    user_F, item_F = (
        pc.fill_null(pc.index_in(table[name].cast(pa.large_string()), value_set=_plain(ids)), -1).to_numpy()
        for name, ids in (("user_id", user_ids), ("item_id", item_ids))
    )
    if set(user_F.tolist()) != set(holdout.user_index.tolist()):
        raise DataError(f"{path}: ranks other users than those with a {holdout.name} target; run the evaluation again")
    user_T, num_items = np.repeat(holdout.user_index, np.diff(holdout.target_offsets)), len(item_ids)
    wanted_T, found_F = user_T * num_items + holdout.target, user_F.astype(np.int64) * num_items + item_F
    order_F = found_F.argsort(kind="stable")
    if len(found_F) != len(wanted_T) or (found_F[order_F] != np.sort(wanted_T)).any() or (item_F < 0).any():
        raise DataError(f"{path}: ranks other targets than the domain's; run the evaluation again")
    if len(np.unique(wanted_T)) < len(wanted_T):
        raise DataError(f"{path}: users have the same target in several queries, whose ranks cannot be told apart")
    row_T = order_F[np.searchsorted(found_F[order_F], wanted_T)]
    return torch.from_numpy(table["rank"].to_numpy().astype(np.int64)[row_T])


def _plain(ids: pa.ChunkedArray) -> pa.Array:
    return ids.cast(pa.large_string()).combine_chunks()
