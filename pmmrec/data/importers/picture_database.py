"""Read pictures from the LMDB files that MoRec, PMMRec, NineRec, PixelRec and MicroLens release."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from pmmrec.data.images import MAX_PIXELS, PictureError
from pmmrec.data.importers.picture_folder import LIST_BATCH, picture_table
from pmmrec.errors import DataError, not_installed

CLASS = "LMDB_Image"  # of any module: the programs that wrote the files were scripts
SIDE = 224  # of MicroLens's pictures, which are floats without a size
DATA_FILE = "data.mdb"


def is_picture_database(path: Path) -> bool:
    """Whether a path is an LMDB file, or the folder of one."""
    return (path.is_file() and path.suffix.lower() in (".lmdb", ".mdb")) or (path / DATA_FILE).is_file()


class PictureDatabase:
    """An LMDB file whose keys are item ids, with or without their first letter, and whose values are pictures.

    Values are encoded pictures, or pickles of a class `LMDB_Image` with raw pixels: `image` and `size`, RGB bytes; or
    `image` alone, 3 x 224 x 224 floats in -1..1 (MicroLens). Nothing else is built from a pickle.
    """

    rules: tuple[str, ...] = ("", "without the first letter of the id", "without the first letter of the key")

    def __init__(self, path: Path) -> None:
        """Raises MachineError without the package lmdb, DataError for a file that is none."""
        try:
            import lmdb
        except ImportError as error:
            raise not_installed(f"{path}: reading an LMDB file", ["lmdb"], "lmdb") from error
        self.path = path
        try:
            self._environment = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False, readahead=False)
        except lmdb.Error as error:
            raise DataError(f"{path}: cannot be read as an LMDB file: {error}") from error
        check_whole(path, self._environment)

    def batches(self) -> Iterator[pa.Table]:
        """Rows of `picture_folder.SCHEMA`: the keys."""
        rows: list[tuple[str, str, str, int | None, bool]] = []
        with self._environment.begin() as transaction:
            for key in transaction.cursor().iternext(keys=True, values=False):
                name = key.decode("utf-8", errors="ignore")
                if name and name.encode() == key and not name.startswith("__"):
                    rows.append((name, name, "", 0, False))
                if len(rows) == LIST_BATCH:
                    yield picture_table(rows)
                    rows = []
        yield picture_table(rows)

    def read(self, name: str, max_bytes: int) -> bytes:
        """The picture of a key, encoded. Raises PictureError for a value that is none."""
        with self._environment.begin() as transaction:
            value = transaction.get(name.encode(), default=b"")
        if len(value) > max_bytes:
            raise PictureError(f"larger than {max_bytes:,} bytes")
        return _encoded(bytes(value)) if value[:1] == b"\x80" else bytes(value)  # a pickle of protocol 2 or later


def check_whole(path: Path, environment: Any) -> None:
    """Raise DataError for a file that ends before its last page: lmdb maps it, and would end the process there."""
    file = path / DATA_FILE if path.is_dir() else path
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size < expected:
        found = f"{file.stat().st_size:,} bytes where its pages need {expected:,}"
        raise DataError(f"{file}: {found}; it was not copied whole, copy it again")


class _Stored:
    """Takes the place of the class that a pickle names."""

    image: Any = None
    size: Any = None


class _Unpickler(pickle.Unpickler):
    """Builds `_Stored`, and refuses every other class and function."""

    def find_class(self, module: str, name: str) -> type[_Stored]:  # noqa: ARG002  its module is that of a script
        if name != CLASS:
            raise pickle.UnpicklingError(f"a pickle that names {name!r}")
        return type(CLASS, (_Stored,), {})  # a new one, since a pickle may change its class


def _encoded(value: bytes) -> bytes:
    """The raw pixels of a pickle as an encoded picture without losses."""
    try:
        stored = _Unpickler(io.BytesIO(value)).load()
        pixels = _pixels(stored)
    except Exception as error:  # a pickle may raise anything
        raise PictureError("not a picture of a known LMDB layout") from error
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, format="BMP")
    return encoded.getvalue()


def _pixels(stored: Any) -> np.ndarray:
    """uint8 `(height, width, 3)`. Raises ValueError or TypeError for any other content."""
    if not isinstance(stored, _Stored) or not isinstance(stored.image, bytes):
        raise TypeError("no pixels")
    if stored.size is None:
        floats = np.frombuffer(stored.image, dtype="<f4").reshape(3, SIDE, SIDE)
        return np.ascontiguousarray(
            ((floats.transpose(1, 2, 0) * 0.5 + 0.5) * 255).round().clip(0, 255).astype(np.uint8)
        )
    height, width = (int(side) for side in stored.size)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise ValueError("a size that cannot be")
    return np.frombuffer(stored.image, dtype=np.uint8).reshape(height, width, 3)
