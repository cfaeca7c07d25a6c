"""Read the histories of users in order, a few users at a time."""
# B users of one chunk, H items of their histories, Q users asked for.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmmrec.data.domain import Domain
from pmmrec.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class HistoryChunk:
    """Histories of some users, oldest item first: user i has item_H[offset_B[i]:offset_B[i+1]], at least one."""

    user_ids: pa.Array
    row_B: Ints  # of the users in their domain
    offset_B: Ints
    item_H: NDArray[np.int32]


class Histories:
    """The sequences of a domain, read batch by batch: memory does not grow with the number of users.

    Each batch is checked when it is read. Raises DataError for a file that differs from what `domain.json` says.
    """

    def __init__(self, domain: Domain) -> None:
        self._sequences = domain.sequences
        self._ends = np.array(domain.sequences.table.starts)

    @property
    def num_users(self) -> int:
        return self._sequences.num_users

    def chunks(self, size: int, users: slice | Ints) -> Iterator[HistoryChunk]:
        """Histories of a range of users, or of the given rows (each once, ascending), at most `size` at a time.

        Raises DataError for a user without history, and for a broken batch.
        """
        for place, (start, end) in enumerate(zip(self._ends[:-1], self._ends[1:], strict=True)):
            rows = _inside(users, int(start), int(end))
            if not len(rows):
                continue
            batch = self._sequences.checked_batch(place, ["user_id", "items"])
            for first in range(0, len(rows), size):
                yield self._history(place, batch, rows[first : first + size])

    def rows_of(self, user_ids: pa.Array) -> tuple[Ints, pa.Array]:
        """Rows of the users with these ids, ascending, and the ids that no user has. Reads the ids of all users."""
        rows, found = [], []
        for place in range(len(self._ends) - 1):
            ids = self._sequences.table.read(place, ["user_id"]).column(0)
            row = np.flatnonzero(pc.is_in(ids, value_set=user_ids).to_numpy(zero_copy_only=False))
            rows.append(row + self._ends[place])
            found.append(ids.take(pa.array(row)))
        known = pa.chunked_array(found, pa.large_string()).combine_chunks()
        unknown = user_ids.filter(pc.invert(pc.is_in(user_ids, value_set=known)))
        return np.concatenate(rows).astype(np.int64), unknown

    def _history(self, place: int, batch: pa.RecordBatch, rows: Ints) -> HistoryChunk:
        is_run = rows[-1] - rows[0] + 1 == len(rows)
        part = batch.slice(int(rows[0]), len(rows)) if is_run else batch.take(pa.array(rows))
        lists = part.column(1)
        offset_B = lists.offsets.to_numpy().astype(np.int64)
        item_H = lists.values.to_numpy()[offset_B[0] : offset_B[-1]]
        empty = np.flatnonzero(np.diff(offset_B) < 1)
        if len(empty):
            user_id = part.column(0)[int(empty[0])].as_py()
            path = self._sequences.table.path(place)
            raise DataError(f"{path}: user {user_id!r} has no history; leave such users out")
        return HistoryChunk(part.column(0), rows + self._ends[place], offset_B - offset_B[0], item_H)


def _inside(users: slice | Ints, start: int, end: int) -> Ints:
    """Which of `users` are in the batch that holds the users from `start` to `end`, as rows of the batch."""
    if isinstance(users, slice):
        return np.arange(max(start, users.start), min(end, users.stop)) - start
    return users[slice(*np.searchsorted(users, [start, end]))] - start
