"""Turn selected interactions into the sequences of users."""
# ruff: noqa: S608  statements contain no values of users

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
        query = """SELECT live.user_key, CAST(catalogue.item_index AS INTEGER) AS item, live.time, live.rest
                   FROM live JOIN catalogue ON catalogue.row = live.item_key
                   ORDER BY live.user_key, live.time, live.rest, live.row"""
        names, types = ("user", "item", "time", "rest"), (pa.int64(), pa.int32(), pa.int64(), pa.int64())
        waiting = pa.Table.from_batches([], pa.schema(list(zip(names, types, strict=True))))
        for batch in stream(self._connection, query):
            named = pa.Table.from_batches([batch]).rename_columns(waiting.column_names)
            waiting = pa.concat_tables([waiting, named.cast(waiting.schema)])
            if len(waiting) >= SEQUENCE_BATCH:
                is_last_user = waiting["user"].to_numpy() == waiting["user"][-1].as_py()
                num_whole = int(np.argmax(is_last_user))  # the last user may continue in the next batch
                yield from self._users(waiting.slice(0, num_whole))
                waiting = waiting.slice(num_whole)
        yield from self._users(waiting)

    def _users(self, rows: pa.Table) -> Iterator[pa.RecordBatch]:
        """Record batches of users whose sequences are complete."""
        if len(rows) == 0:
            return
        user, item, time, rest = (rows[name].to_numpy() for name in ("user", "item", "time", "rest"))
        is_same = user[1:] == user[:-1]
        starts = np.concatenate([[0], np.flatnonzero(~is_same) + 1])
        offsets = pa.array(np.append(starts, len(user)), pa.int64())
        columns = [self._ids(user[starts]), pa.LargeListArray.from_arrays(offsets, pa.array(item, pa.int32()))]
        if self._has_times:
            self.num_ties += int((is_same & (time[1:] == time[:-1]) & (rest[1:] == rest[:-1])).sum())
            columns.append(pa.LargeListArray.from_arrays(offsets, pa.array(time, pa.int64())))
        yield pa.RecordBatch.from_arrays(columns, names=["user_id", "items", "times"][: len(columns)])

    def _ids(self, keys: np.ndarray) -> pa.Array:
        first, last = int(keys[0]), int(keys[-1])
        query = f"SELECT user_id FROM users WHERE user_key BETWEEN {first} AND {last} ORDER BY user_key"
        ids = pa.Table.from_batches(stream(self._connection, query))["user_id"]
        return ids.cast(pa.large_string()).combine_chunks()
