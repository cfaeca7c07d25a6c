"""Read parts of a large file without mapping it, also in several processes that share it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pmmrec.errors import DataError


class Parts:
    """A file that is open for as long as somebody holds this. Pages that are read count as nobody's memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)

    def read(self, size: int, position: int) -> bytes:
        """`size` bytes from `position` on. DataError where the file ends before them."""
        found = b""
        while len(found) < size:
            more = self._at(size - len(found), position + len(found))
            if not more:
                raise DataError(f"{self.path}: was cut short while it was read; make or copy it again")
            found = found + more if found else more
        return found

    def _at(self, size: int, position: int) -> bytes:
        if sys.platform == "win32":
            self._file.seek(position)
            return self._file.read(size)
        return os.pread(self._file.fileno(), size, position)  # processes share the place where a file is read
