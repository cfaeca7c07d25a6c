"""Match pictures with items, and decode each picture once."""
# ruff: noqa: S608  statements contain no ids or file names of users

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from pmmrec.data.images import PictureError, stored_jpeg
from pmmrec.data.importers.picture_addresses import PictureAddresses
from pmmrec.data.importers.picture_cache import PictureCache
from pmmrec.data.importers.picture_column import PictureColumn
from pmmrec.data.importers.picture_folder import SUFFIXES
from pmmrec.data.importers.picture_matching import match_names, match_paths, take, write_matches
from pmmrec.data.importers.picture_store import PictureStore, open_pictures
from pmmrec.data.importers.selection import Selection
from pmmrec.data.importers.source import stream
from pmmrec.data.info import IMAGES_SCHEMA
from pmmrec.data.parallel import in_order
from pmmrec.errors import DataError
from pmmrec.progress import Progress

MAX_PICTURE_BYTES = 200_000_000
IMAGE_BATCH = 256
NUM_EXAMPLES = 3
SECOND = "second picture of an item"
AMBIGUOUS = "one of several in different folders"
OUTSIDE = "link to a file outside the folder"
_DIGEST_BYTES = 32


@dataclass(frozen=True)
class _Job:
    row: int
    item_id: str
    file_name: str | None
    data: bytes | None = None


@dataclass(frozen=True)
class _Picture:
    row: int
    item_id: str
    jpeg: bytes | None = None
    sha256: bytes | None = None
    reason: str | None = None  # why the picture cannot be used
    file_name: str | None = None
    is_new: bool = False  # decoded now, so that a cache does not know it

    @property
    def rejection(self) -> tuple[str, str, str | None, int]:
        return self.item_id, str(self.reason), self.file_name, self.row


class Pictures:
    """The pictures of one import, from a folder, an archive or an LMDB file, or from the column `image` of the items.

    The table `item_pictures` in DuckDB names the item of each; the folder `work` keeps those that are decoded early.
    """

    def __init__(
        self,
        folder: Path | None,
        work: Path,
        connection: duckdb.DuckDBPyConnection,
        *,
        side: int,
        num_threads: int,
        cache: Path | None = None,
        fetch: str | None = None,
    ) -> None:
        """`fetch`: the column of items whose addresses are fetched; `cache`: folder of `PictureCache`."""
        self._folder, self._work, self._connection = folder, work, connection
        self._column: PictureColumn | None = None
        self._store: PictureStore | None = None
        self._cache: PictureCache | None = None
        self._side, self._num_threads = side, num_threads
        self._cache_folder = cache
        self._rule = ""
        self._notes: list[str] = []
        self.num_ignored = 0  # files of a folder that belong to no item
        self._fetch = fetch
        self.is_given = folder is not None or fetch is not None

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about pictures that are not read."""
        return tuple(self._notes)

    def match(self, selection: Selection, column: PictureColumn | None, *, has_paths: bool = False) -> None:
        """Fill `item_pictures`, and reject pictures that cannot be read and second pictures of an item.

        `has_paths`: the column `picture_path` of `items` names pictures of the folder; otherwise their names are ids.
        `column` is given where the columns `has_bytes` and `has_path_alone` of `items` tell which have a picture. Names
        in the folder are compared with ids; an id such as `../x` never becomes a path. Raises DataError when the folder
        is missing or holds no picture of any item.
        """
        if self._folder is not None or self._fetch is not None:
            self._store = self._opened()
            self._match_store(self._store, selection, has_paths=has_paths)
        else:
            has_bytes = "has_bytes" if column is not None else "false"
            self._run(
                f"""CREATE TABLE item_pictures AS SELECT row, CAST(NULL AS VARCHAR) AS file_name, false AS is_outside,
                    item_id FROM items WHERE {has_bytes}"""
            )
        if column is not None:
            self._column, self.is_given = column, bool(self._rows("SELECT count(*) FROM item_pictures")[0][0])
            selection.rejections.add_images(
                "SELECT item_id, 'a path without bytes', NULL, row FROM items WHERE has_path_alone ORDER BY row"
            )
        if self.is_given and self._cache_folder is not None:
            self._cache = PictureCache(self._cache_folder, self._side)

    def _opened(self) -> PictureStore:
        if self._folder is None:
            return PictureAddresses(self._connection, str(self._fetch))
        return open_pictures(self._folder, self._work)

    def _matched(self, store: PictureStore, selection: Selection, *, has_paths: bool) -> str:
        """Make `matches` and `item_pictures`. Returns the rule, in words."""
        if isinstance(store, PictureAddresses):
            rule = store.match(selection.rejections)
        elif has_paths:
            rule = match_paths(self._connection, selection)
        else:
            rule = match_names(self._connection, store.rules)
        take(self._connection)
        return rule

    def _match_store(self, store: PictureStore, selection: Selection, *, has_paths: bool) -> None:
        self._run(
            """CREATE TABLE pictures (stem VARCHAR, file_name VARCHAR, suffix VARCHAR, choice INTEGER,
               is_outside BOOLEAN)"""
        )
        for batch in store.batches():
            self._connection.register("listed", batch)
            self._run("INSERT INTO pictures SELECT * FROM listed")
            self._connection.unregister("listed")
        rule = self._rule = self._matched(store, selection, has_paths=has_paths)
        self._run(
            f"""CREATE TABLE other_pictures AS SELECT items.row, item_id, file_name, CASE
                  WHEN choice IS NULL THEN 'format not read: ' || suffix
                  WHEN items.row NOT IN (SELECT row FROM item_pictures) THEN '{AMBIGUOUS}' ELSE '{SECOND}' END AS reason
                FROM matches JOIN items USING (row) WHERE file_name NOT IN (SELECT file_name FROM item_pictures)"""
        )
        ((num_pictures, num_used, num_matched, num_others, num_items),) = self._rows(
            """SELECT (SELECT count(*) FROM pictures), (SELECT count(DISTINCT file_name) FROM item_pictures),
               (SELECT count(*) FROM item_pictures), (SELECT count(*) FROM other_pictures),
               (SELECT count(*) FROM items)"""
        )
        self.num_ignored = num_pictures - num_used - num_others
        self._note_others()
        if num_matched == 0:
            what = "can be read" if num_others else "belongs to an item"
            found = f"{store.path}: none of its {num_pictures:,} pictures {what}"
            names = self._rows("SELECT file_name FROM pictures ORDER BY file_name LIMIT 1")
            advice = f"name them <item_id>{', '.join(SUFFIXES)}, or name a column with their paths (--image-column)"
            if has_paths:
                advice = f"paths in the column must name files within it{f', such as {names[0][0]!r}' if names else ''}"
            if self._fetch is not None:
                found, advice = f"column {self._fetch!r}: no address of a picture", "such as https://host.example/a.jpg"
            raise DataError("; ".join([f"{found}; {advice}", *self._notes]))
        without = num_items - num_matched
        self._notes.append(f"images: {num_matched:,} items have a picture by {rule}, {without:,} have none")
        rejections = selection.rejections
        rejections.add_images("SELECT item_id, reason, file_name, row FROM other_pictures ORDER BY row, file_name")
        rejections.add_images(
            f"SELECT item_id, '{OUTSIDE}', file_name, row FROM item_pictures WHERE is_outside ORDER BY row"
        )
        self._run("DELETE FROM item_pictures WHERE is_outside")

    def _note_others(self) -> None:
        """Note the kinds of pictures that are not used, each with the first names."""
        nobody_s = "SELECT file_name FROM pictures WHERE file_name NOT IN (SELECT file_name FROM matches)"
        nobody_s += " AND stem NOT IN (SELECT item_id FROM items)"  # such a one lies elsewhere than a path says
        cased = f"{nobody_s} AND lower(stem) IN (SELECT lower(item_id) FROM items)"
        composed = f"{nobody_s} AND nfc_normalize(stem) IN (SELECT nfc_normalize(item_id) FROM items)"
        for query, what in (
            (
                f"SELECT file_name FROM other_pictures WHERE reason = '{SECOND}'",
                "pictures are second pictures of an item; of those in the nearest folder, the first in the order "
                f"{', '.join(SUFFIXES)} is taken",
            ),
            (
                f"SELECT file_name FROM other_pictures WHERE reason = '{AMBIGUOUS}'",
                "pictures have the name of an item in several folders, and none of them is taken; keep one, or name "
                "paths in a column (--image-column)",
            ),
            (
                "SELECT file_name FROM other_pictures WHERE starts_with(reason, 'format not read')",
                "pictures of items are in formats that are not read; save them as jpg, png or webp",
            ),
            (cased, "pictures differ from an item id only in upper and lower case; names must be equal"),
            (composed, "pictures differ from an item id only in the Unicode form of accents; save both as NFC"),
        ):
            ((count,),) = self._rows(f"SELECT count(*) FROM ({query})")
            names = [name for (name,) in self._rows(f"{query} ORDER BY file_name LIMIT {NUM_EXAMPLES}")]
            self._note(count, what, names)

    def _note(self, count: int, what: str, names: list[str]) -> None:
        if count:
            self._notes.append(f"images: {count:,} {what} ({', '.join(names)}{', ...' if count > len(names) else ''})")

    def decode_of_textless(self, selection: Selection, progress: Progress | None) -> None:
        """Decode the pictures of items without a text first: items whose picture fails leave `item_pictures`."""
        chosen = "item_pictures WHERE row IN (SELECT row FROM items WHERE text IS NULL)"
        ((total,),) = self._connection.execute(f"SELECT count(*) FROM {chosen}").fetchall()
        jobs = self._jobs(f"SELECT row, item_id, file_name, true FROM {chosen} ORDER BY row")
        failed = []
        for picture in self._decoded(jobs, total, progress, "images of items without text"):
            if picture.jpeg is None or picture.sha256 is None:
                failed.append(picture)
            else:
                self._kept(picture.row).write_bytes(picture.sha256 + picture.jpeg)
                self._cached([picture])
        selection.rejections.add_broken_images([picture.rejection for picture in failed])
        rows = [picture.row for picture in failed]
        self._connection.execute("DELETE FROM item_pictures WHERE list_contains(?, row)", [rows])

    def batches(self, selection: Selection, num_items: int, progress: Progress | None) -> Iterator[pa.RecordBatch]:
        """Rows of `IMAGES_SCHEMA` for all items of `catalogue`, in order; pictures that cannot be read are recorded."""
        jobs = self._jobs(
            """SELECT catalogue.row, catalogue.item_id, item_pictures.file_name, item_pictures.row IS NOT NULL
               FROM catalogue LEFT JOIN item_pictures USING (row) ORDER BY catalogue.row"""
        )
        decoded = self._decoded(jobs, num_items, progress, "images")
        while batch := list(itertools.islice(decoded, IMAGE_BATCH)):
            selection.rejections.add_broken_images([picture.rejection for picture in batch if picture.reason])
            self._cached(batch)
            columns = [[picture.jpeg for picture in batch], [picture.sha256 for picture in batch]]
            yield pa.record_batch(columns, schema=IMAGES_SCHEMA)

    def _jobs(self, query: str) -> Iterator[_Job]:
        """`query` gives row, item id, file name (or null) and whether there is a picture, ordered by row."""
        rows = (
            row
            for batch in stream(self._connection, query)
            for row in zip(*(column.to_pylist() for column in batch.columns), strict=True)
        )
        if self._column is None:
            yield from (_Job(row, item_id, file_name) for row, item_id, file_name, _ in rows)
            return
        here, ahead = itertools.tee(rows)
        wanted = (row for row, _, _, has_picture in ahead if has_picture)
        held = self._column.read(wanted)
        for row, item_id, _, has_picture in here:
            yield _Job(row, item_id, None, next(held) if has_picture else None)

    def _decoded(self, jobs: Iterable[_Job], total: int, progress: Progress | None, stage: str) -> Iterator[_Picture]:
        for done, picture in enumerate(in_order(self._decode, jobs, self._num_threads), start=1):
            yield picture
            if progress is not None and (done % 1000 == 0 or done == total):
                progress(stage, done, total)

    def _decode(self, job: _Job) -> _Picture:
        found = _Picture(job.row, job.item_id, file_name=job.file_name)
        if job.file_name is None and job.data is None:
            return found
        kept = self._kept(job.row)
        if kept.exists():
            data = kept.read_bytes()
            return dataclasses.replace(found, jpeg=data[_DIGEST_BYTES:], sha256=data[:_DIGEST_BYTES])
        try:
            data = self._content(job)
            digest = hashlib.sha256(data).digest()
            kept_jpeg = self._cache.get(digest) if self._cache is not None else None
            if kept_jpeg is not None:
                return dataclasses.replace(found, jpeg=kept_jpeg, sha256=digest)
            return dataclasses.replace(found, jpeg=stored_jpeg(data, self._side), sha256=digest, is_new=True)
        except OSError as error:
            return dataclasses.replace(found, reason=f"cannot be read: {error.strerror}")
        except PictureError as error:
            return dataclasses.replace(found, reason=str(error))

    def _content(self, job: _Job) -> bytes:
        """The bytes of a picture. Raises PictureError for folders, pipes (which may never end) and files too large."""
        if self._store is not None and job.file_name is not None:
            return self._store.read(job.file_name, MAX_PICTURE_BYTES)
        data = job.data or b""
        if len(data) > MAX_PICTURE_BYTES:
            raise PictureError(f"larger than {MAX_PICTURE_BYTES:,} bytes")
        return data

    def _cached(self, pictures: Iterable[_Picture]) -> None:
        """Keep pictures that were decoded now; they outlive an import that is stopped."""
        if self._cache is not None:
            self._cache.put([(one.sha256, one.jpeg) for one in pictures if one.is_new and one.sha256 and one.jpeg])

    def close(self) -> None:
        """Close the cache."""
        if self._cache is not None:
            self._cache.close()

    def write_matches(self, path: Path) -> None:
        """Write what became of each picture of a folder, archive or LMDB file, once all are decoded."""
        if self._store is not None:
            write_matches(self._connection, path, self._rule)

    def _kept(self, row: int) -> Path:
        return self._work / f"{row}.picture"

    def _run(self, statement: str) -> None:
        self._connection.execute(statement)

    def _rows(self, query: str) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self._connection.execute(query).fetchall()
        return rows
