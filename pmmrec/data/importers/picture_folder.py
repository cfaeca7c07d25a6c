"""List the pictures in a folder, those in unsupported formats, and the folders below it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

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
    """One folder; `batches` lists its pictures, `folders` names the folders below it, which are not searched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders: list[str] = []

    def batches(self) -> Iterator[pa.Table]:
        """Rows of `SCHEMA`. Raises DataError where the folder cannot be listed."""
        inside = self.path.resolve()
        rows: list[_Row] = []
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        self.folders += [entry.name] if not entry.name.startswith(".") else []
                        continue
                    row = _row(entry, inside)
                    if row is not None:
                        rows.append(row)
                    if len(rows) == LIST_BATCH:
                        yield _as_table(rows)
                        rows = []
        except OSError as error:
            raise DataError(f"{self.path}: pictures cannot be listed: {error.strerror}") from error
        yield _as_table(rows)


def _row(entry: os.DirEntry[str], inside: Path) -> _Row | None:
    """The row of a picture; None for other files."""
    stem, suffix = os.path.splitext(entry.name)  # noqa: PTH122  a Path for each name is slow
    suffix = suffix.lower()
    is_read = suffix in SUFFIXES
    if not (is_read or suffix in UNREAD_SUFFIXES) or not _is_utf8(stem):
        return None
    if not (entry.is_symlink() or entry.is_file()):
        return None
    target = Path(os.path.realpath(entry.path))  # resolve() may raise for circular links
    is_outside = entry.is_symlink() and not target.is_relative_to(inside)
    return stem, entry.name, suffix, SUFFIXES.index(suffix) if is_read else None, is_outside


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are not text: no id equals them
        return False
    return True


def _as_table(rows: list[_Row]) -> pa.Table:
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in SCHEMA]
    return pa.table(columns, schema=SCHEMA)
