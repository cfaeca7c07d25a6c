"""Which picture of a folder belongs to which item, and how all are decoded, each once."""
# ruff: noqa: S608  statements are built of our own words only; ids and file names never are part of one

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa

from pmmrec.data.images import PictureError, stored_jpeg
from pmmrec.data.importers.selection import Selection
from pmmrec.data.importers.source import stream
from pmmrec.data.info import IMAGES_SCHEMA
from pmmrec.data.parallel import in_order
from pmmrec.errors import DataError
from pmmrec.progress import Progress

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")  # of two pictures of an item the one earlier in this order is taken
MAX_PICTURE_BYTES = 200_000_000
LIST_BATCH = 100_000
IMAGE_BATCH = 256
_DIGEST_BYTES = 32
_LISTED = pa.schema(
    [("stem", pa.string()), ("file_name", pa.string()), ("choice", pa.int32()), ("is_outside", pa.bool_())]
)


@dataclass(frozen=True)
class _Job:
    row: int
    item_id: str
    file_name: str | None


@dataclass(frozen=True)
class _Picture:
    row: int
    item_id: str
    jpeg: bytes | None = None
    sha256: bytes | None = None
    reason: str | None = None  # why there is no jpeg although there is a picture


class Pictures:
    """The pictures of one import: `item_pictures` in DuckDB says whose they are, `work` keeps those decoded early."""

    def __init__(
        self, folder: Path | None, work: Path, connection: duckdb.DuckDBPyConnection, *, side: int, num_threads: int
    ) -> None:
        self._folder, self._work, self._connection = folder, work, connection
        self._side, self._num_threads = side, num_threads
        self.num_ignored = 0

    def match(self, selection: Selection) -> None:
        """Fill `item_pictures`. Raises DataError when the folder is missing or holds no picture of any item.

        The folder is listed and its names compared with ids: an id such as `../x` never becomes a path.
        """
        run = self._connection.execute
        run("CREATE TABLE pictures (stem VARCHAR, file_name VARCHAR, choice INTEGER, is_outside BOOLEAN)")
        if self._folder is not None:
            for batch in _listed(self._folder):
                self._connection.register("listed", batch)
                run("INSERT INTO pictures SELECT * FROM listed")
                self._connection.unregister("listed")
        run(
            """CREATE TABLE item_pictures AS SELECT items.row, first.file_name, first.is_outside, items.item_id
               FROM items JOIN (SELECT stem, file_name, is_outside FROM pictures
                 QUALIFY row_number() OVER (PARTITION BY stem ORDER BY choice, file_name) = 1) AS first
               ON first.stem = items.item_id"""
        )
        ((num_pictures, num_matched),) = run(
            "SELECT (SELECT count(*) FROM pictures), (SELECT count(*) FROM item_pictures)"
        ).fetchall()
        self.num_ignored = num_pictures - num_matched
        if self._folder is not None and num_matched == 0:
            raise DataError(
                f"{self._folder}: none of its {num_pictures:,} pictures belongs to an item; name them "
                f"<item_id>{', '.join(SUFFIXES)}"
            )
        outside = run("SELECT item_id FROM item_pictures WHERE is_outside ORDER BY row").fetchall()
        selection.reject_images([(item_id, "link out of the folder") for (item_id,) in outside])
        run("DELETE FROM item_pictures WHERE is_outside")

    def decode_of_textless(self, selection: Selection, progress: Progress | None) -> None:
        """Decode the pictures that alone decide whether an item can stand; those that fail leave `item_pictures`."""
        chosen = "item_pictures WHERE row IN (SELECT row FROM items WHERE text IS NULL)"
        ((total,),) = self._connection.execute(f"SELECT count(*) FROM {chosen}").fetchall()
        jobs = self._jobs(f"SELECT row, item_id, file_name FROM {chosen} ORDER BY row")
        failed = []
        for picture in self._decoded(jobs, total, progress, "images of items without text"):
            if picture.jpeg is None or picture.sha256 is None:
                failed.append(picture)
            else:
                self._kept(picture.row).write_bytes(picture.sha256 + picture.jpeg)
        selection.reject_images([(picture.item_id, str(picture.reason)) for picture in failed])
        rows = [picture.row for picture in failed]
        self._connection.execute("DELETE FROM item_pictures WHERE list_contains(?, row)", [rows])

    def batches(self, selection: Selection, num_items: int, progress: Progress | None) -> Iterator[pa.RecordBatch]:
        """Rows of `IMAGES_SCHEMA` for all items of `catalogue`, in order; a picture that cannot be read is noted."""
        jobs = self._jobs(
            """SELECT catalogue.row, catalogue.item_id, item_pictures.file_name
               FROM catalogue LEFT JOIN item_pictures USING (row) ORDER BY catalogue.row"""
        )
        decoded = self._decoded(jobs, num_items, progress, "images")
        while batch := list(itertools.islice(decoded, IMAGE_BATCH)):
            selection.reject_images([(picture.item_id, picture.reason) for picture in batch if picture.reason])
            columns = [[picture.jpeg for picture in batch], [picture.sha256 for picture in batch]]
            yield pa.record_batch(columns, schema=IMAGES_SCHEMA)

    def _jobs(self, query: str) -> Iterator[_Job]:
        for batch in stream(self._connection, query):
            for row, item_id, file_name in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                yield _Job(row, item_id, file_name)

    def _decoded(self, jobs: Iterable[_Job], total: int, progress: Progress | None, stage: str) -> Iterator[_Picture]:
        for done, picture in enumerate(in_order(self._decode, jobs, self._num_threads), start=1):
            yield picture
            if progress is not None and (done % 1000 == 0 or done == total):
                progress(stage, done, total)

    def _decode(self, job: _Job) -> _Picture:
        found = _Picture(job.row, job.item_id)
        if job.file_name is None or self._folder is None:
            return found
        kept = self._kept(job.row)
        if kept.exists():
            data = kept.read_bytes()
            return dataclasses.replace(found, jpeg=data[_DIGEST_BYTES:], sha256=data[:_DIGEST_BYTES])
        path = self._folder / job.file_name
        try:
            data = _content(path)
            jpeg = stored_jpeg(data, self._side)
            return dataclasses.replace(found, jpeg=jpeg, sha256=hashlib.sha256(data).digest())
        except OSError as error:
            return dataclasses.replace(found, reason=f"cannot be read: {error.strerror}")
        except PictureError as error:
            return dataclasses.replace(found, reason=str(error))

    def _kept(self, row: int) -> Path:
        return self._work / f"{row}.picture"


def _listed(folder: Path) -> Iterator[pa.Table]:
    """Names of the pictures in a folder, not of those in folders below it."""
    inside = folder.resolve()
    rows: list[tuple[str, str, int, bool]] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122  a Path for each name is slow
                if suffix.lower() not in SUFFIXES or not _is_utf8(stem) or not (entry.is_symlink() or entry.is_file()):
                    continue
                target = Path(os.path.realpath(entry.path))  # resolve() may raise for links that lead in a circle
                is_outside = entry.is_symlink() and not target.is_relative_to(inside)
                rows.append((stem, entry.name, SUFFIXES.index(suffix.lower()), is_outside))
                if len(rows) == LIST_BATCH:
                    yield _as_table(rows)
                    rows = []
    except OSError as error:
        raise DataError(f"{folder}: pictures cannot be listed: {error.strerror}") from error
    yield _as_table(rows)


def _content(path: Path) -> bytes:
    """A picture as it stands on disk. PictureError for folders, pipes (which might never end) and too large files."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise PictureError("not a file")
    if status.st_size > MAX_PICTURE_BYTES:
        raise PictureError(f"larger than {MAX_PICTURE_BYTES:,} bytes")
    return path.read_bytes()


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no text: no id is equal to them
        return False
    return True


def _as_table(rows: list[tuple[str, str, int, bool]]) -> pa.Table:
    return pa.table([list(column) for column in zip(*rows, strict=True)] or [[], [], [], []], schema=_LISTED)
