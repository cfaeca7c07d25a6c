"""What did each user of a domain do, read in order and a few users at a time?"""
# B users of one chunk, H items of their histories, Q users asked for.

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmmrec.data.domain import DOMAIN_FILE, SEQUENCE_FIELDS, SEQUENCES_FILE, Domain, check_sequences
from pmmrec.errors import DataError

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class History:
    """What some users did, oldest first: user i's item rows are item_H[offset_B[i]:offset_B[i+1]], one or more."""

    user_ids: pa.Array
    offset_B: Ints
    item_H: NDArray[np.int32]


class Histories:
    """The sequences of a domain, read batch by batch: memory does not grow with the number of users.

    The file is read, not mapped: pages of a map that were touched would count as memory of this process. Each batch is
    checked when it is read. Raises DataError for a file that is not what `domain.json` says.
    """

    def __init__(self, domain: Domain) -> None:
        self._path, self._num_items = domain.folder / SEQUENCES_FILE, domain.num_items
        try:
            with pa.memory_map(str(self._path)) as source:
                reader = pa.ipc.open_file(source)
                self._check_fields(reader.schema)
                num_rows = [reader.get_batch(place).num_rows for place in range(reader.num_record_batches)]
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._path}: cannot be read as an Arrow file: {error}") from error
        self._ends = np.cumsum([0, *num_rows])
        if self._ends[-1] != domain.num_users:
            said = f"{DOMAIN_FILE} says {domain.num_users}"
            raise DataError(f"{self._path}: {self._ends[-1]} rows where {said}; import the domain again")

    @property
    def num_users(self) -> int:
        return int(self._ends[-1])

    def chunks(self, size: int, users: slice | Ints) -> Iterator[History]:
        """Histories of a range of users, or of the given rows (each once, rising), at most `size` at a time.

        Raises DataError for a user without history, and for a broken batch.
        """
        for place, (start, end) in enumerate(zip(self._ends[:-1], self._ends[1:], strict=True)):
            rows = _inside(users, int(start), int(end))
            if not len(rows):
                continue
            batch = self._batch(place)
            for first in range(0, len(rows), size):
                yield self._history(batch, rows[first : first + size])

    def rows_of(self, user_ids: pa.Array) -> tuple[Ints, pa.Array]:
        """Rows of the users with these ids, rising, and the ids that no user has. Reads the ids of all users."""
        rows, found = [], []
        for place in range(len(self._ends) - 1):
            ids = self._read(place, columns=[0]).column(0)
            row = np.flatnonzero(pc.is_in(ids, value_set=user_ids).to_numpy(zero_copy_only=False))
            rows.append(row + self._ends[place])
            found.append(ids.take(pa.array(row)))
        known = pa.chunked_array(found, pa.large_string()).combine_chunks()
        unknown = user_ids.filter(pc.invert(pc.is_in(user_ids, value_set=known)))
        return np.concatenate(rows).astype(np.int64), unknown

    def item_counts(self) -> Ints:
        """How often each item was touched, `(N,)`, in one pass over all users."""
        counts = np.zeros(self._num_items, dtype=np.int64)
        for place in range(len(self._ends) - 1):
            counts += np.bincount(self._batch(place).column(1).flatten().to_numpy(), minlength=self._num_items)
        return counts

    def _batch(self, place: int) -> pa.RecordBatch:
        """Ids and items of one batch, sound."""
        batch = self._read(place, columns=[0, 1])
        check_sequences(self._path, [pa.chunked_array([batch.column(1)])], self._num_items)
        return batch

    def _read(self, place: int, columns: list[int]) -> pa.RecordBatch:
        try:
            with pa.OSFile(str(self._path)) as source:
                options = pa.ipc.IpcReadOptions(included_fields=columns)
                batch = pa.ipc.open_file(source, options=options).get_batch(place)
            batch.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self._path}: cannot be read as an Arrow file: {error}") from error
        if batch.column(0).null_count:
            raise DataError(f"{self._path}: a user_id is missing; import the domain again")
        return batch

    def _history(self, batch: pa.RecordBatch, rows: Ints) -> History:
        is_run = rows[-1] - rows[0] + 1 == len(rows)
        part = batch.slice(int(rows[0]), len(rows)) if is_run else batch.take(pa.array(rows))
        lists = part.column(1)
        offset_B = lists.offsets.to_numpy().astype(np.int64)
        item_H = lists.values.to_numpy()[offset_B[0] : offset_B[-1]]
        empty = np.flatnonzero(np.diff(offset_B) < 1)
        if len(empty):
            user_id = part.column(0)[int(empty[0])].as_py()
            raise DataError(f"{self._path}: user {user_id!r} has no history; leave such users out")
        return History(part.column(0), offset_B - offset_B[0], item_H)

    def _check_fields(self, schema: pa.Schema) -> None:
        for place, field in enumerate(SEQUENCE_FIELDS):
            if len(schema) <= place or schema.field(place).name != field.name or schema.field(place).type != field.type:
                found = f"has no column {field.name} of type {field.type} in place {place}"
                raise DataError(f"{self._path}: {found}; import the domain again")


def _inside(users: slice | Ints, start: int, end: int) -> Ints:
    """Rows of one batch, which holds the users from `start` to `end`, that are asked for."""
    if isinstance(users, slice):
        return np.arange(max(start, users.start), min(end, users.stop)) - start
    return users[slice(*np.searchsorted(users, [start, end]))] - start
