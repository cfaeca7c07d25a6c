"""Read parts of a large file without mapping it, also from several processes that share the open file."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pmmrec.errors import DataError


class SharedFile:
    """An open file. What is read does not stay in the memory of the process, as pages of a map would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=0)

    def read(self, size: int, position: int) -> bytes:
        """`size` bytes from `position` on. Raises DataError where the file ends before that."""
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
        return os.pread(self._file.fileno(), size, position)  # without a seek: forked processes share the file position
