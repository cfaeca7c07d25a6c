"""Turn selected interactions into the sequences of users."""
# U users whose sequences are complete, R interactions of them.

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import numpy as np
import pyarrow as pa

from pmmrec.data.importers.source import stream

SEQUENCE_BATCH = 1_000_000  # interactions that are collected before they are split by user


class UserSequences:
    """Turns `live` into one row for each user: users by their first row, items by exact time, then by row."""

    def __init__(self, connection: duckdb.DuckDBPyConnection, *, has_times: bool) -> None:
        self._connection, self._has_times = connection, has_times
        self.num_ties = 0  # interactions with the same time as the one before

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Rows of user_id, items and, with `has_times`, times."""
        ids = _Ids(stream(self._connection, "SELECT user_id FROM users ORDER BY user_key"))
        for user_R, item_R, time_R, rest_R in self._whole_users():
            is_same = user_R[1:] == user_R[:-1]
            start_U = np.concatenate([[0], np.flatnonzero(~is_same) + 1])
            offsets = pa.array(np.append(start_U, len(user_R)), pa.int64())
            columns = [ids.take(len(start_U)), pa.LargeListArray.from_arrays(offsets, pa.array(item_R, pa.int32()))]
            if self._has_times:
                is_tied = is_same & (time_R[1:] == time_R[:-1]) & (rest_R[1:] == rest_R[:-1])
                self.num_ties += int(is_tied.sum())
                columns.append(pa.LargeListArray.from_arrays(offsets, pa.array(time_R, pa.int64())))
            yield pa.RecordBatch.from_arrays(columns, names=["user_id", "items", "times"][: len(columns)])

    def _whole_users(self) -> Iterator[list[np.ndarray]]:
        """User keys, items, times and their rests of about `SEQUENCE_BATCH` interactions, without half a user."""
        query = """SELECT user_key, CAST(item_index AS INTEGER), time, rest
                   FROM live JOIN catalogue ON catalogue.row = item_key ORDER BY user_key, time, rest, live.row"""
        waiting: list[list[np.ndarray]] = []
        num_waiting = 0
        for batch in stream(self._connection, query):
            waiting.append([column.to_numpy() for column in batch.columns])
            num_waiting += batch.num_rows
            if num_waiting < SEQUENCE_BATCH:
                continue
            columns = [np.concatenate(parts) for parts in zip(*waiting, strict=True)]
            num_whole = int(np.searchsorted(columns[0], columns[0][-1]))  # the last user may continue
            if num_whole:
                yield [column[:num_whole] for column in columns]
            waiting, num_waiting = [[column[num_whole:] for column in columns]], num_waiting - num_whole
        if num_waiting:
            yield [np.concatenate(parts) for parts in zip(*waiting, strict=True)]


class _Ids:
    """Takes ids from batches of one column, some at a time."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches, self._left = batches, pa.array([], pa.large_string())

    def take(self, count: int) -> pa.Array:
        """The next `count` ids."""
        parts = []
        while count > 0:
            if not len(self._left):
                self._left = next(self._batches).column(0).cast(pa.large_string())
            parts.append(self._left.slice(0, count))
            self._left = self._left.slice(len(parts[-1]))
            count -= len(parts[-1])
        return pa.concat_arrays(parts)
