"""Read the sequences of a domain's users, one user at a time or all in order, without holding them in memory."""
# B users of one stretch, H items of their histories, N items of the domain.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmmrec.data.arrow import ArrowTable, release_memory
from pmmrec.data.info import SEQUENCE_FIELDS, SEQUENCES_FILE, TIMES_FIELD, DomainInfo
from pmmrec.errors import DataError

MAX_SHOWN = 5
USERS_AT_ONCE = 1 << 20


class Stretch(NamedTuple):
    """Sequences of consecutive users, oldest item first: user `first + i` has item_H[offset_B[i]:offset_B[i+1]]."""

    first: int
    offset_B: NDArray[np.int64]
    item_H: NDArray[np.int32]
    time_H: NDArray[np.int64] | None = None  # of each interaction, where it was asked for


class Sequences:
    """The sequences of a domain. Raises DataError for files that differ from what `domain.json` says."""

    def __init__(self, folder: Path, info: DomainInfo) -> None:
        fields = SEQUENCE_FIELDS if info.time_unit is None else (*SEQUENCE_FIELDS, TIMES_FIELD)
        self._num_items = info.num_items
        self.table = ArrowTable([folder / name for name in info.parts(SEQUENCES_FILE)], fields, info.num_users)
        self._ids, self._items = self.table.cells("user_id"), self.table.cells("items")
        self._times = self.table.cells("times") if info.time_unit is not None else None

    @property
    def num_users(self) -> int:
        return self.table.num_rows

    def user_id(self, user: int) -> str:
        try:
            return self._ids.read(user).decode()
        except UnicodeDecodeError as error:
            raise DataError(f"{self.table.paths[0].parent}: the id of user {user} is not UTF-8") from error

    def items(self, user: int) -> NDArray[np.int32]:
        """Item rows of a user, oldest first."""
        return np.frombuffer(self._items.read(user), dtype="<i4")

    def times(self, user: int) -> NDArray[np.int64] | None:
        """Times of `items(user)`; None where the source had no times."""
        return None if self._times is None else np.frombuffer(self._times.read(user), dtype="<i8")

    def lengths(self, first: int, end: int) -> NDArray[np.int64]:
        """How many items each of the users from `first` to `end` touched, `(end - first,)`."""
        return self._items.lengths(first, end)

    def all_lengths(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """`lengths` of all users, some at a time: the row of the first, and the lengths."""
        for first in range(0, self.num_users, USERS_AT_ONCE):
            yield first, self.lengths(first, min(first + USERS_AT_ONCE, self.num_users))

    def stretches(self, *, with_times: bool = False) -> Iterator[Stretch]:
        """All users in order, one batch of the file at a time, each checked as it is read.

        `with_times`: also the times of the interactions; only for a domain that has them.
        """
        for batch in range(self.table.num_batches):
            found = self.checked_batch(batch, ["items", "times"] if with_times else ["items"])
            lists = found.column("items")
            offset_B = lists.offsets.to_numpy().astype(np.int64)
            item_H = lists.values.to_numpy()[offset_B[0] : offset_B[-1]]
            time_H = found.column("times").flatten().to_numpy() if with_times else None
            yield Stretch(self.table.starts[batch], offset_B - offset_B[0], item_H, time_H)
        release_memory()

    def checked_batch(self, batch: int, names: Sequence[str] | None = None) -> pa.RecordBatch:
        """Some columns of one batch, or all; checks that items are rows of the domain and that each has a time."""
        found = self.table.read(batch, names)
        lists = [found.column(name) for name in ("items", "times") if name in found.schema.names]
        _check_lists(self.table.path(batch), lists, self._num_items)
        return found

    def check(self) -> int:
        """Read and check all sequences; returns the number of interactions. Raises DataError for broken data."""
        batches = map(self.checked_batch, range(self.table.num_batches))
        num_interactions = sum(len(batch.column("items").flatten()) for batch in batches)
        release_memory()
        return num_interactions


def _check_lists(path: Path, lists: Sequence[pa.Array], num_items: int) -> None:
    if any(column.null_count or column.values.null_count for column in lists):
        raise DataError(f"{path}: one of the items, or an entry of one, is missing; import the domain again")
    lengths = [pc.list_value_length(column) for column in lists]
    if not all(length.equals(lengths[0]) for length in lengths):
        raise DataError(f"{path}: a user has more items than times, or fewer; import the domain again")
    items = lists[0].flatten().to_numpy()
    if len(items) and (items.min() < 0 or items.max() >= num_items):
        outside = items[(items < 0) | (items >= num_items)]
        shown = outside[:MAX_SHOWN].tolist()
        raise DataError(f"{path}: {len(outside):,} item rows outside 0..{num_items - 1}, such as {shown}")
