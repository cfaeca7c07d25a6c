"""Rank the held-out items of each user among the whole catalogue."""
# Q queries (users of a holdout), T targets of all queries. q queries of one chunk, t targets of one chunk.
# N items of the catalogue, H items of the histories in a chunk.

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from pmmrec.evaluation.share import SINGLE_PROCESS, WorkerGroup, turns
from pmmrec.progress import Progress

Seen = Literal["exclude", "include"]
Rows = NDArray[np.int64] | NDArray[np.int32]
ScoreRows = Callable[[slice], Tensor]  # a slice of the queries -> scores of all items (q, N); larger is better


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
    target, which takes a second pass over the scores. Ranks are computed on the device of the scores. Processes of a
    `group` share the chunks: all must call this, and all get every rank.

    Raises DataError, in every process of the group, if there is no query or a score is not finite.
    """
    check_seen(seen)
    if not holdout.num_queries:
        raise DataError(f"{holdout.name}: there is no user to rank for")
    if is_readable_N is None:
        is_readable_N = np.ones(num_items, dtype=bool)
    figures = torch.zeros(len(fields(Ranks)), len(holdout.target) + 1, dtype=torch.int64)  # the last column: who failed
    failure: DataError | None = None
    for place, is_own in turns(-(-holdout.num_queries // chunk), group):
        rows = slice(place * chunk, min((place + 1) * chunk, holdout.num_queries))
        score_qN = score(rows)
        try:
            check_scores(score_qN, holdout.user_index[rows], num_items, holdout.name)
        except DataError as error:
            if group.world == 1:
                raise
            failure, figures[:, -1] = error, 1  # the others are still working, and all stop together
            continue
        if is_own:
            is_readable = torch.from_numpy(is_readable_N).to(score_qN.device)
            ranks = _rank_chunk(holdout, rows, score_qN, seen, is_readable, counts_ties=counts_ties)
            targets = slice(holdout.target_offsets[rows.start], holdout.target_offsets[rows.stop])
            figures[:, targets] = torch.stack([getattr(ranks, f.name).long() for f in fields(Ranks)])
        if progress is not None:
            progress("users ranked", rows.stop, holdout.num_queries)
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


def check_scores(score_qN: Tensor, user_index_q: Rows, num_items: int, name: str) -> None:
    """DataError unless there is a finite score for each user and item."""
    if score_qN.shape != (len(user_index_q), num_items):
        expected = f"({len(user_index_q)}, {num_items})"
        raise DataError(f"{name}: scores have shape {tuple(score_qN.shape)}; {expected} is users x items")
    is_finite_q = torch.isfinite(score_qN).all(dim=1)
    if not is_finite_q.all():
        query = int(torch.nonzero(~is_finite_q)[0])
        item = int(torch.nonzero(~torch.isfinite(score_qN[query]))[0])
        where, value = f"{name}: user {int(user_index_q[query])}", score_qN[query, item].item()
        raise DataError(f"{where}: item {item} scores {value}; scores must be finite, has the model diverged?")


def listed_items(offsets: Rows, items: Rows, rows: slice, num_items: int, device: torch.device) -> Tensor:
    """Which items are in the lists `rows`, `(q, N)` bool. List i is items[offsets[i]:offsets[i+1]]."""
    offset = torch.tensor(offsets[rows.start : rows.stop + 1], dtype=torch.int64)
    item_H = torch.tensor(items[int(offset[0]) : int(offset[-1])], dtype=torch.int64)
    query_H = torch.repeat_interleave(offset.diff())
    is_seen_qN = torch.zeros(len(offset) - 1, num_items, dtype=torch.bool, device=device)
    is_seen_qN[query_H.to(device), item_H.to(device)] = True
    return is_seen_qN


def _rank_chunk(
    holdout: Holdout, rows: slice, score_qN: Tensor, seen: Seen, is_readable_N: Tensor, *, counts_ties: bool
) -> Ranks:
    device = score_qN.device
    offset = torch.tensor(holdout.target_offsets[rows.start : rows.stop + 1], dtype=torch.int64)
    query_t = torch.repeat_interleave(offset.diff())
    target_t = torch.tensor(holdout.target[offset[0] : offset[-1]], dtype=torch.int64)
    is_seen_qN = listed_items(holdout.history_offsets, holdout.history_items, rows, score_qN.shape[1], device)
    is_candidate_qN = is_readable_N & ~is_seen_qN if seen == "exclude" else is_readable_N.expand_as(is_seen_qN)
    if holdout.candidates is not None and holdout.candidate_offsets is not None:
        lists = holdout.candidate_offsets, holdout.candidates
        is_candidate_qN = is_candidate_qN & listed_items(*lists, rows, score_qN.shape[1], device)
    at_t = query_t.to(device), target_t.to(device)
    rank_t, tied_t = torch.zeros(2, len(target_t), dtype=torch.int64, device=device)
    place_t = torch.arange(len(query_t)) - (offset - offset[0])[query_t]
    for place in range(int(offset.diff().max())):  # one target of each query at a time: no more memory than one has
        is_now_t = place_t == place
        query, target = at_t[0][is_now_t], at_t[1][is_now_t]
        score_q1 = score_qN[query, target][:, None]
        of_q = slice(None) if place == 0 else query  # every query has a first target: no copy of all scores
        rank_t[is_now_t] = (is_candidate_qN[of_q] & (score_qN[of_q] >= score_q1)).sum(dim=1)  # counts the target too
        if counts_ties:
            tied_t[is_now_t] = (is_candidate_qN[of_q] & (score_qN[of_q] == score_q1)).sum(dim=1)
    rank_t = rank_t.masked_fill(~is_candidate_qN[at_t], 0).cpu()
    return Ranks(
        query=query_t + rows.start,
        user_index=torch.tensor(holdout.user_index[rows], dtype=torch.int64)[query_t],
        target=target_t,
        rank=_apart(query_t, rank_t),
        num_candidates=is_candidate_qN.sum(dim=1).cpu()[query_t],
        seen_target=is_seen_qN[at_t].cpu(),
        num_tied=_without_targets(query_t, rank_t, tied_t.cpu()) if counts_ties else torch.zeros_like(rank_t),
    )


def _without_targets(query_t: Tensor, rank_t: Tensor, tied_t: Tensor) -> Tensor:
    """Of the candidates that tie with a target, those that are no targets: targets that tie have the same rank."""
    _, place_t, count = torch.unique(torch.stack([query_t, rank_t]), dim=1, return_inverse=True, return_counts=True)
    return torch.where(rank_t > 0, tied_t - count[place_t], 0)


def _apart(query_t: Tensor, rank_t: Tensor) -> Tensor:
    """Ranks of tied targets of one query, in their order: each tied one counted all the others ahead of it."""
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
    """Read the rank of each query of `holdout`, `(Q,)` int64, from a file of `write_ranks` for the same domain.

    Raises DataError if the file cannot be read or holds other users or targets.
    """
    try:
        table = pq.read_table(path, columns=["user_id", "item_id", "rank"])
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as ranks: {error}") from error
    wanted = ids_at(user_ids, torch.from_numpy(holdout.user_index))
    row_Q = pc.index_in(wanted.cast(pa.large_string()), value_set=table["user_id"].cast(pa.large_string()))
    if row_Q.null_count or len(table) != holdout.num_queries:
        raise DataError(f"{path}: ranks other users than those with a {holdout.name} target; run the evaluation again")
    found = table.take(row_Q)
    targets = ids_at(item_ids, torch.from_numpy(holdout.target)).cast(pa.large_string())
    if not found["item_id"].cast(pa.large_string()).combine_chunks().equals(targets):
        raise DataError(f"{path}: ranks other targets than the domain's; run the evaluation again")
    return torch.from_numpy(found["rank"].to_numpy().astype(np.int64))
