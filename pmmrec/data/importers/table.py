"""Import items and interactions in csv, tsv or parquet files, and a folder of pictures, as a domain."""
# ruff: noqa: S608  statements contain no values of users

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field, model_validator
from typing_extensions import Self

from pmmrec.data.domain import Domain
from pmmrec.data.importers.picture_column import COLUMN, PictureColumn
from pmmrec.data.importers.pictures import Pictures
from pmmrec.data.importers.selection import Selection
from pmmrec.data.importers.source import PARQUET, Column, Source, is_of_machine, stream
from pmmrec.data.importers.times import TimeRule, TimeUnit, time_rule
from pmmrec.data.info import NAME_PATTERN, REJECTED_FILE, Filters, ImportSummary, SourceFile
from pmmrec.data.write import DomainFolder, new_folder
from pmmrec.errors import MachineError, RecipeError
from pmmrec.modality import Modality
from pmmrec.progress import Progress
from pmmrec.settings import Config, Place

SEQUENCE_BATCH = 1_000_000  # interactions that are collected before they are split by user
NO_EFFECT = "image_side has no effect without images; leave it out or give images"
FILE_ORDER = "times: no column 'timestamp', so the order of rows is kept"


class TableImport(Config):
    """Settings of one import."""

    items: Place = Field(
        description="csv, tsv or parquet: item_id, text, and any further columns as attributes; `image` holds pictures."
    )
    interactions: Place = Field(description="csv, tsv or parquet: user_id, item_id, and timestamp if there is one.")
    images: Place | None = Field(None, description="Folder of <item_id>.jpg, .png, .webp, .gif or .bmp.")
    name: str = Field(pattern=NAME_PATTERN, description="What reports call the domain.")
    out: Place = Field(description="Folder of the new domain; must not exist.")
    k_core: int | None = Field(5, ge=1, lt=2**31, description="Least interactions of each user and item. None: any.")
    image_side: int = Field(256, ge=16, le=4096, description="Shortest side of a stored image in pixels, at most.")
    memory_gb: float = Field(2.0, ge=0.25, description="Memory of the database; the rest goes to disk beside `out`.")
    num_threads: int = Field(4, ge=1, le=64, description="Threads of the database and of image decoding.")

    @model_validator(mode="after")
    def _image_side_needs_images(self) -> Self:
        may_hold_images = self.items.suffix.lower() == PARQUET  # the import reads its columns later
        if self.images is None and "image_side" in self.model_fields_set and not may_hold_images:
            raise ValueError(NO_EFFECT)
        return self


@dataclass(frozen=True)
class _Sources:
    """The content of the user's files, before rows are selected."""

    items: Source
    interactions: Source
    attributes: list[Column]
    pictures: PictureColumn | None
    times: TimeRule | None
    num_items: int
    num_interactions: int


def import_table(settings: TableImport, progress: Progress | None = None) -> Domain:
    """Write the domain and open it. After an error nothing is left.

    Raises RecipeError when `out` exists, DataError for files that break a rule, MachineError when memory or disk are
    full.
    """
    with new_folder(settings.out) as (folder, was_stale):
        work = folder / "work"
        work.mkdir()
        with _database(work, settings) as connection, warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", category=UserWarning, module="PIL"
            )  # broken metadata, which is dropped anyway
            warnings.simplefilter(
                "error", Image.DecompressionBombWarning
            )  # the limit in images.py is lower and has a better message
            _Import(settings, folder, work, connection, progress).run(was_stale=was_stale)
        shutil.rmtree(work)
    return Domain.open(settings.out)


class _Import:
    """The steps of one import."""

    def __init__(
        self,
        settings: TableImport,
        folder: Path,
        work: Path,
        connection: duckdb.DuckDBPyConnection,
        progress: Progress | None,
    ) -> None:
        self._settings, self._connection, self._progress = settings, connection, progress
        self._domain = DomainFolder(folder)
        self._selection = Selection(connection)
        side, num_threads = settings.image_side, settings.num_threads
        self._pictures = Pictures(settings.images, work, connection, side=side, num_threads=num_threads)

    def run(self, *, was_stale: bool) -> None:
        settings, selection, pictures = self._settings, self._selection, self._pictures
        sources = self._load()
        self._say("rows read", 1)
        selection.take_items(settings.items)
        pictures.match(selection, sources.pictures)
        if "image_side" in settings.model_fields_set and not pictures.is_given:
            raise RecipeError(NO_EFFECT)
        pictures.decode_of_textless(selection, self._progress)
        selection.reject_bare_items()
        selection.take_interactions(settings.interactions, settings.items)
        if settings.k_core is not None:
            selection.keep_core(settings.k_core, settings.interactions)
        num_items = selection.number_items()
        self._say("rows chosen", 2)
        self._domain.write_items(self._item_batches(sources), [column.name for column in sources.attributes])
        if pictures.is_given:
            self._domain.write_images(pictures.batches(selection, num_items, self._progress))
        sequences = _Sequences(self._connection, has_times=sources.times is not None)
        self._domain.write_sequences(sequences.batches(), has_times=sources.times is not None)
        selection.write_rejected(self._domain.folder / REJECTED_FILE)
        self._seal(sources, self._notes(sources, sequences.num_ties, was_stale=was_stale))

    def _load(self) -> _Sources:
        items = Source(self._settings.items, self._connection)
        interactions = Source(self._settings.interactions, self._connection)
        items.require("item_id", "text")
        interactions.require("user_id", "item_id")
        pictures = PictureColumn.of(items)
        if pictures is not None and self._settings.images is not None:
            found = f"{items.path}: column {COLUMN!r} holds pictures, and a folder of pictures is given too"
            raise RecipeError(f"{found}; leave one of them out")
        attributes = [
            column
            for column in items.columns
            if column.name not in ("item_id", "text") and column.name.strip() and not column.holds_bytes
        ]
        columns = {"item_id": items.as_id("item_id"), "text": items.as_text("text")}
        if pictures is not None:
            columns |= {"has_bytes": pictures.has_bytes, "has_path_alone": pictures.has_path_alone}
        columns |= {column.sql: f"CAST({column.sql} AS VARCHAR)" for column in attributes}
        num_items = items.load("raw_items", columns)
        columns = {"user_id": interactions.as_id("user_id"), "item_id": interactions.as_id("item_id")}
        stamp = interactions.column("timestamp")
        columns["stamp"] = stamp.sql if stamp else "0"
        num_interactions = interactions.load("stamped", columns)
        times = time_rule(self._connection, "stamped", stamp, str(interactions.path)) if stamp else None
        time, rest = (times.sql, times.rest) if times else ("row", "0")
        self._connection.execute(
            f"""CREATE TABLE raw_interactions AS SELECT row, user_id, item_id, {time} AS time, {rest} AS rest,
                stamp IS NOT NULL AND trim(CAST(stamp AS VARCHAR)) <> '' AS has_stamp FROM stamped"""
        )
        return _Sources(items, interactions, attributes, pictures, times, num_items, num_interactions)

    def _item_batches(self, sources: _Sources) -> Iterator[pa.RecordBatch]:
        columns = ", ".join(["item_id", "text", *(column.sql for column in sources.attributes)])
        return stream(self._connection, f"SELECT {columns} FROM catalogue ORDER BY item_index")

    def _notes(self, sources: _Sources, num_ties: int, *, was_stale: bool) -> tuple[str, ...]:
        notes = [sources.times.note, *sources.times.warnings] if sources.times else [_file_order(sources.interactions)]
        for role, source in (("items", sources.items), ("interactions", sources.interactions)):
            notes += source.notes(role)
        notes += [*_about_images(sources.items, sources.pictures), *self._pictures.notes]
        if num_ties:
            notes.append(
                f"times: {num_ties:,} interactions have the same time as the one before; the order of rows is kept"
            )
        named = [column.name for column in sources.interactions.columns if column.name.strip()]
        unused = [name for name in named if name not in ("user_id", "item_id", "timestamp")]
        if unused:
            notes.append(f"interactions: columns not used: {', '.join(unused)}")
        if was_stale:
            notes.append("removed what an unfinished import had left behind")
        return tuple(notes)

    def _seal(self, sources: _Sources, notes: tuple[str, ...]) -> None:
        settings, domain = self._settings, self._domain
        kept = {
            "items": domain.num_items,
            "users": domain.num_users,
            "interactions": domain.num_interactions,
            "texts": domain.num_with[Modality.TEXT],
            "images": domain.num_with[Modality.IMAGE],
        }
        unit: TimeUnit | None = sources.times.unit if sources.times else None
        records: dict[str, SourceFile] = {"items": sources.items.record, "interactions": sources.interactions.record}
        domain.seal(
            settings.name,
            filters=Filters(k_core=settings.k_core),
            image_side=settings.image_side if self._pictures.is_given else None,
            time_unit=unit,
            sources=records,
            summary=ImportSummary(
                num_items_read=sources.num_items,
                num_interactions_read=sources.num_interactions,
                kept=kept,
                rejected=self._selection.rejections(),
                num_pictures_ignored=self._pictures.num_ignored,
                notes=notes,
            ),
        )

    def _say(self, stage: str, done: int) -> None:
        if self._progress is not None:
            self._progress(stage, done, 2)


class _Sequences:
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


def _about_images(items: Source, pictures: PictureColumn | None) -> list[str]:
    """Notes on columns that may be meant as pictures but are not read."""
    notes, column = [], items.column(COLUMN)
    unread = [one.name for one in items.columns if one.holds_bytes and (one.name != COLUMN or pictures is None)]
    if unread:
        notes.append(f"items: columns of bytes not used: {', '.join(unread)}; pictures are read from {COLUMN!r} alone")
    if column is not None and not column.holds_bytes:
        kept = f"items: column {COLUMN!r} is {column.type} and kept as text"
        notes.append(f"{kept}; pictures come from its bytes in a parquet file, or from a folder")
    return notes


def _file_order(interactions: Source) -> str:
    near = " or ".join(map(repr, interactions.like("timestamp")))
    return f"{FILE_ORDER}; is it {near}? Rename it" if near else FILE_ORDER


@contextlib.contextmanager
def _database(work: Path, settings: TableImport) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database on disk that never uses the network and respects its memory limit."""
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{int(settings.memory_gb * 1e9)}B",
        "temp_directory": str(work / "spill"),
        "threads": settings.num_threads,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "preserve_insertion_order": True,
        "arrow_large_buffer_size": True,
    }
    try:
        with duckdb.connect(str(work / "import.duckdb"), config=config) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection
    except duckdb.Error as error:
        if not is_of_machine(error):
            raise
        reason = str(error).splitlines()[0]
        raise MachineError(f"{settings.out}: out of room: {reason}; raise memory_gb or free some disk") from error
