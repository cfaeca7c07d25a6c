"""List the pictures in a folder and all folders below it, and read them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from pmmrec.data.images import PictureError
from pmmrec.errors import DataError

# If an item has two pictures, the suffix that comes first here is taken.
SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp")
UNREAD_SUFFIXES = (
    *(
        ".tif",
        ".tiff",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
        ".jxl",
        ".jp2",
        ".j2k",
        ".svg",
        ".ico",
        ".psd",
        ".tga",
        ".dng",
    ),
    *(".jpe", ".jif", ".pjpeg", ".apng", ".ppm", ".pgm", ".pbm", ".pnm", ".pcx", ".cr2", ".nef", ".arw", ".raw"),
)
LIST_BATCH = 100_000
SCHEMA = pa.schema(
    [
        ("stem", pa.string()),
        ("file_name", pa.string()),
        ("suffix", pa.string()),
        ("choice", pa.int32()),  # index of the suffix in `SUFFIXES`; null where the format is not supported
        ("is_outside", pa.bool_()),
    ]
)
_Row = tuple[str, str, str, int | None, bool]


class PictureFolder:
    """A folder of pictures, searched in depth; hidden folders and links to folders are left out.

    `shown` is what messages call it, where its content was unpacked from a file.
    """

    rules: tuple[str, ...] = ("",)  # how names are compared with ids, besides being equal

    def __init__(self, path: Path, shown: Path | None = None) -> None:
        self._inside, self.path = path, shown or path

    def batches(self) -> Iterator[pa.Table]:
        """Rows of `SCHEMA`. Raises DataError where a folder cannot be listed."""
        rows: list[_Row] = []
        inside = self._inside.resolve()
        try:
            for entry, place in self._entries():
                row = _row(entry, place, inside)
                if row is not None:
                    rows.append(row)
                if len(rows) == LIST_BATCH:
                    yield picture_table(rows)
                    rows = []
        except OSError as error:
            raise DataError(f"{self.path}: pictures cannot be listed: {error.strerror}") from error
        yield picture_table(rows)

    def read(self, name: str, max_bytes: int) -> bytes:
        """The bytes of a picture. Raises PictureError for pipes (which may never end) and files too large."""
        path = self._inside / name
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PictureError("not a file")
        if status.st_size > max_bytes:
            raise PictureError(f"larger than {max_bytes:,} bytes")
        return path.read_bytes()

    def _entries(self) -> Iterator[tuple[os.DirEntry[str], str]]:
        """Entries that are no folders, with the folder they are in, relative to this one."""
        waiting = [""]
        while waiting:
            place = waiting.pop()
            with os.scandir(self._inside / place) as entries:
                for entry in entries:
                    if not entry.is_dir(follow_symlinks=False):
                        yield entry, place
                    elif not entry.name.startswith(".") and _is_utf8(entry.name):
                        waiting.append(f"{place}{entry.name}/")


def _row(entry: os.DirEntry[str], place: str, inside: Path) -> _Row | None:
    """The row of a picture; None for other files."""
    stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122  a Path for each name is slow
    suffix = suffix.lower()
    is_read = suffix in SUFFIXES
    if not (is_read or suffix in UNREAD_SUFFIXES) or not _is_utf8(stem):
        return None
    is_link = entry.is_symlink()
    if not (is_link or entry.is_file()):
        return None
    # resolve() may raise for circular links
    is_outside = is_link and not Path(os.path.realpath(entry.path)).is_relative_to(inside)
    return stem, f"{place}{entry.name}", suffix, SUFFIXES.index(suffix) if is_read else None, is_outside


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not text: no id equals them
        return False
    return True


def picture_table(rows: list[_Row]) -> pa.Table:
    """Rows of `SCHEMA`."""
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in SCHEMA]
    return pa.table(columns, schema=SCHEMA)
