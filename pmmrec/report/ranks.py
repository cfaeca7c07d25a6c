"""Read the ranks of a run and of the baselines from its ranks.parquet."""
# V targets (one or several per user).

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pmmrec.errors import DataError
from pmmrec.evaluation.outcome import BASELINE, Outcome

RANKS_FILE = "ranks.parquet"
PLACE = "place"  # position of a target in the sequence of its user; only if a user has several queries
QUERY = "query"  # number of the query of a target; only if users have several queries and no `place`
HELD_OUT = "held_out"  # whether a target lies outside the training part; only if some lie inside it


@dataclass(frozen=True)
class RankedTargets:
    """The targets in a file, ordered by user and position."""

    user_ids: pa.ChunkedArray
    item_ids: pa.ChunkedArray
    user_V: NDArray[np.int64]  # equal for targets of one user
    query_V: NDArray[np.int64]  # equal for targets of one query, rising
    rank_V: NDArray[np.int64]  # 1 is best, 0 a miss
    baselines: Mapping[str, NDArray[np.int64]]  # ranks of each baseline; empty if the file has none

    @property
    def user_of_query(self) -> NDArray[np.int64]:
        """The user of each query."""
        return self.user_V[np.unique(self.query_V, return_index=True)[1]]


def ranks_file(folder: Path, outcome: Outcome, domain: str) -> Path:
    """The file in which a run keeps the ranks of a domain."""
    return folder / (RANKS_FILE if len(outcome.domains) == 1 else f"ranks-{domain}.parquet")


def read_ranked(path: Path) -> RankedTargets:
    """Read the ranks of held-out targets. DataError if the file cannot be read or does not hold ranks."""
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as ranks: {error}") from error
    for column in ("user_id", "item_id", "rank"):
        if column not in table.column_names:
            raise DataError(f"{path}: has no column {column!r}, so it holds no ranks; measure the run again")
    ranked = [name for name in table.column_names if name == "rank" or name.startswith(BASELINE)]
    if not table.num_rows or any(table[column].null_count for column in ("user_id", "item_id", *ranked)):
        raise DataError(f"{path}: empty, or a rank is missing; measure the run again")
    _refuse_other_types(path, table, ranked)
    if HELD_OUT in table.column_names:
        table = table.filter(pc.field(HELD_OUT))
        if not table.num_rows:
            raise DataError(f"{path}: all targets lie in the training part, so none can be compared fairly")
    within = [name for name in (PLACE, QUERY) if name in table.column_names]
    table = table.sort_by([(name, "ascending") for name in ("user_id", *within, "item_id")])
    users, items = (table[name].cast(pa.large_string()) for name in ("user_id", "item_id"))
    user_V = users.combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    query_V = user_V
    if PLACE in within:
        query_V = np.arange(len(user_V))
    elif QUERY in within:
        pairs = np.stack([user_V, table[QUERY].to_numpy().astype(np.int64)])
        query_V = np.cumsum(np.append(False, (np.diff(pairs) != 0).any(axis=0)))
    baselines = {
        name.removeprefix(BASELINE): table[name].to_numpy().astype(np.int64)
        for name in table.column_names
        if name.startswith(BASELINE)
    }
    return RankedTargets(users, items, user_V, query_V, table["rank"].to_numpy().astype(np.int64), baselines)


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _refuse_other_types(path: Path, table: pa.Table, ranked: Sequence[str]) -> None:
    """DataError if a column has the wrong type, or a column in `ranked` holds a negative rank."""
    wanted = {
        "user_id": (_is_text, "texts"),
        "item_id": (_is_text, "texts"),
        **dict.fromkeys(ranked, (pa.types.is_integer, "whole numbers")),
        PLACE: (pa.types.is_integer, "whole numbers"),
        QUERY: (pa.types.is_integer, "whole numbers"),
        HELD_OUT: (pa.types.is_boolean, "true or false"),
    }
    for column, (is_right, words) in wanted.items():
        if column in table.column_names and not is_right(table[column].type):
            raise DataError(f"{path}: {column} is {table[column].type}, not {words}; measure the run again")
    least = min(pc.min(table[column]).as_py() for column in ranked)
    if least < 0:
        raise DataError(f"{path}: a rank is {least}; the best is 1, a miss 0; measure the run again")


def same_targets(ranked: RankedTargets, path: Path, first: RankedTargets, first_path: Path) -> NDArray[np.int64]:
    """The ranks of `ranked` after checking that their targets are those of `first`. DataError if they are not."""
    for what, ours, theirs in (
        ("users", ranked.user_ids, first.user_ids),
        ("targets", ranked.item_ids, first.item_ids),
    ):
        if not ours.equals(theirs):
            raise DataError(
                f"{path}: ranks other {what} than {first_path}; only figures on the same users and rules compare"
            )
    return ranked.rank_V
