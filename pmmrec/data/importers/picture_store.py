"""Open what a user names as pictures: a folder, an archive, a folder of archives, or an LMDB file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from pmmrec.data.importers.picture_archive import TAR, ZIP, is_archive, unpack_pictures
from pmmrec.data.importers.picture_database import PictureDatabase, is_picture_database
from pmmrec.data.importers.picture_folder import PictureFolder
from pmmrec.errors import DataError


class PictureStore(Protocol):
    """Lists pictures by their names, and reads them; several threads read at once."""

    path: Path
    rules: tuple[str, ...]

    def batches(self) -> Iterator[pa.Table]: ...

    def read(self, name: str, max_bytes: int) -> bytes: ...


def open_pictures(path: Path, work: Path) -> PictureStore:
    """The pictures at `path`; archives, and the tar shards of a webdataset, are unpacked in `work`."""
    if is_picture_database(path):
        return PictureDatabase(path)
    archives = [path] if is_archive(path) else _shards(path)
    if path.is_file() and not archives:
        raise DataError(
            f"{path}: no pictures are read from such a file; give a folder, {', '.join((*ZIP, *TAR))} or .lmdb"
        )
    if not archives:
        return PictureFolder(path)
    target = work / "pictures"
    for archive in archives:
        unpack_pictures(archive, target if len(archives) == 1 else target / archive.name)
    target.mkdir(exist_ok=True)
    return PictureFolder(target, path)


def _shards(path: Path) -> list[Path]:
    """The tar files of a folder that holds nothing but tar files and their descriptions."""
    files = sorted(path.iterdir()) if path.is_dir() else []
    shards = [one for one in files if one.name.lower().endswith(TAR)]
    others = [one for one in files if one not in shards and one.suffix.lower() not in (".json", ".txt", ".md", ".idx")]
    return [] if others else shards
