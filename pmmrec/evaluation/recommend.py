"""Which k items should each user see next?"""
# B users of one chunk, K items of a list, N items of the catalogue, D width.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pmmrec.atomic import whole_file
from pmmrec.data.contents import Contents
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.catalogue import history_scorer
from pmmrec.evaluation.ids import ids_at
from pmmrec.evaluation.ranking import Rows, Score, Seen, check_scores, check_seen, seen_items
from pmmrec.models.recommender import Recommender

SCHEMA = pa.schema(
    [
        ("user_id", pa.large_string()),
        ("rank", pa.int32()),
        ("item_id", pa.large_string()),
        ("score", pa.float32()),
    ]
)


@dataclass(frozen=True)
class TopItems:
    """The lists of some users, best first, equal scores by item row; on the CPU."""

    user_index_B: Tensor  # int64
    item_index_BK: Tensor  # int64, item rows
    score_BK: Tensor  # float32
    is_filled_BK: Tensor  # bool; False at the end of a list when too few items are left to recommend


def top_k(
    recommender: Recommender,
    vectors_ND: Tensor,
    offsets: Rows,
    items: Rows,
    k: int,
    *,
    counts: Rows,
    contents: Contents | None = None,
    seen: Seen = "exclude",
    chunk: int,
) -> Iterator[TopItems]:
    """Exact lists for all users, in order; user i's history is items[offsets[i]:offsets[i+1]].

    `counts`: how often each item was touched, `(N,)`; read by scorers that know of popularity. With `contents`, alike
    items tie exactly and nobody gets an item of which the model can read nothing.

    `exclude`: nobody gets an item of the history. Raises RecipeError when k does not fit the catalogue, DataError for a
    user without history and for scores that are not finite; the checks of k and of histories come before any work.
    """
    check_seen(seen)
    num_items = vectors_ND.shape[0]
    if not 1 <= k <= num_items:
        raise RecipeError(f"k: {k} items cannot be recommended from a catalogue of {num_items}; take 1 to {num_items}")
    empty = np.flatnonzero(np.diff(offsets) < 1)
    if len(empty):
        raise DataError(f"user {empty[0]} has no history ({len(empty)} such users); leave such users out")
    score = history_scorer(recommender, vectors_ND, offsets, items, counts, contents)
    is_readable_N = torch.ones(num_items, dtype=torch.bool)
    if contents is not None:
        is_readable_N = torch.from_numpy(contents.is_readable_N)
    return _lists(score, offsets, items, is_readable_N, k, seen, chunk)


def write_top_k(path: Path, lists: Iterable[TopItems], user_ids: pa.ChunkedArray, item_ids: pa.ChunkedArray) -> int:
    """Stream lists to Parquet: user_id, rank (from 1), item_id, score; one row group a chunk. Returns the rows written.

    The file is whole or absent. Raises RecipeError when it exists.
    """
    if path.exists():
        raise RecipeError(f"{path}: exists; name another file or remove this one")
    num_rows = 0
    user_ids, item_ids = (pa.chunked_array([ids.combine_chunks()]) for ids in (user_ids, item_ids))
    with whole_file(path) as temporary, pq.ParquetWriter(temporary, SCHEMA) as writer:
        for top in lists:
            table = _rows(top, user_ids, item_ids)
            num_rows += table.num_rows
            writer.write_table(table)
    return num_rows


def largest(score_BN: Tensor, k: int) -> Tensor:
    """Columns of the k largest of each row, `(B, K)`, largest first; of equal scores the first column wins.

    torch.topk leaves open which of several equal scores it takes, and in which order.
    """
    least_B1 = score_BN.topk(k, dim=1).values[:, -1:]
    is_above_BN, is_tied_BN = score_BN > least_B1, score_BN == least_B1
    num_tied_B1 = k - is_above_BN.sum(dim=1, keepdim=True)
    is_taken_BN = is_above_BN | (is_tied_BN & (is_tied_BN.cumsum(dim=1) <= num_tied_B1))
    column_BK = torch.nonzero(is_taken_BN)[:, 1].view(-1, k)
    order_BK = score_BN.gather(1, column_BK).argsort(dim=1, descending=True, stable=True)
    return column_BK.gather(1, order_BK)


def _lists(
    score: Score, offsets: Rows, items: Rows, is_readable_N: Tensor, k: int, seen: Seen, chunk: int
) -> Iterator[TopItems]:
    num_users, num_items = len(offsets) - 1, len(is_readable_N)
    for start in range(0, num_users, chunk):
        rows = slice(start, min(start + chunk, num_users))
        score_BN, user_index = score(rows), np.arange(rows.start, rows.stop)
        check_scores(score_BN, user_index, num_items, "recommendation")
        score_BN = score_BN.masked_fill(~is_readable_N.to(score_BN.device), -torch.inf)
        if seen == "exclude":
            is_seen_BN = seen_items(offsets, items, rows, num_items, score_BN.device)
            score_BN = score_BN.masked_fill(is_seen_BN, -torch.inf)
        item_index_BK = largest(score_BN, k)
        score_BK = score_BN.gather(1, item_index_BK).cpu()
        yield TopItems(torch.from_numpy(user_index), item_index_BK.cpu(), score_BK, score_BK > -torch.inf)


def _rows(top: TopItems, user_ids: pa.ChunkedArray, item_ids: pa.ChunkedArray) -> pa.Table:
    is_filled_BK = top.is_filled_BK
    row, place = torch.nonzero(is_filled_BK, as_tuple=True)
    columns = [
        ids_at(user_ids, top.user_index_B[row]),
        pa.array((place + 1).numpy(), pa.int32()),
        ids_at(item_ids, top.item_index_BK[is_filled_BK]),
        pa.array(top.score_BK[is_filled_BK].numpy(), pa.float32()),
    ]
    return pa.table(columns, schema=SCHEMA)
