"""Keep decoded pictures for the next import of the same ones, by the content of their sources."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

from pmmrec.data.releases import made_by

FILE = "pictures.sqlite"
STORED_VERSION = 1  # raise it when `stored_jpeg` gives other bytes for the same source
MAX_BYTES = 20_000_000_000  # of the file; the pictures that came first make room
WAIT_S = 30.0  # for another import that writes
_PAGES = ("page_count", "freelist_count", "page_size")
_TABLE = """CREATE TABLE IF NOT EXISTS pictures
            (number INTEGER PRIMARY KEY, key BLOB UNIQUE NOT NULL, jpeg BLOB NOT NULL, checksum BLOB NOT NULL)"""


class PictureCache:
    """Stored pictures in one SQLite file of a folder; threads and processes may use it at once.

    The key is a hash of the source, the side and the releases that decode it. A file that is damaged or cannot be
    written is told once and not used: an import never fails for its cache.
    """

    def __init__(self, folder: Path, side: int) -> None:
        self._path, self._how = folder / FILE, f"{side} {STORED_VERSION} {made_by('pixels')}".encode()
        self._lock = threading.Lock()
        self._file: sqlite3.Connection | None = None
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(self._path, timeout=WAIT_S, check_same_thread=False)
            self._file.execute("PRAGMA journal_mode = WAL")
            self._file.execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may lose the last pictures alone
            self._file.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file; pictures that were not `put` are not in it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, source: bytes) -> bytes | None:
        """The stored picture of a source, by the source's SHA-256; None where it is not kept, or damaged."""
        with self._lock:
            try:
                if self._file is None:
                    return None
                query = "SELECT jpeg, checksum FROM pictures WHERE key = ?"
                found = self._file.execute(query, (self._key(source),)).fetchone()
            except sqlite3.Error as error:
                self._give_up(error)
                return None
        return found[0] if found is not None and hashlib.sha256(found[0]).digest() == found[1] else None

    def put(self, pictures: Iterable[tuple[bytes, bytes]]) -> None:
        """Keep pictures: the SHA-256 of the source, and what is stored of it. They are on disk when this returns."""
        rows = [(self._key(source), jpeg, hashlib.sha256(jpeg).digest()) for source, jpeg in pictures]
        with self._lock:
            if self._file is None or not rows:
                return
            try:
                with self._file:
                    self._file.executemany(
                        "INSERT OR REPLACE INTO pictures (key, jpeg, checksum) VALUES (?, ?, ?)", rows
                    )
                    self._make_room(sum(len(jpeg) for _, jpeg, _ in rows))
            except sqlite3.Error as error:
                self._give_up(error)

    def _make_room(self, num_bytes: int) -> None:
        """Remove the first pictures where the file is full, twice as many bytes as came."""
        if self._file is None:
            return
        pages, free, size = (self._file.execute(f"PRAGMA {what}").fetchone()[0] for what in _PAGES)
        if (pages - free) * size <= MAX_BYTES:
            return
        going, room = 0, 0
        for number, size in self._file.execute("SELECT number, length(jpeg) FROM pictures ORDER BY number"):
            going, room = number, room + size
            if room >= 2 * num_bytes:
                break
        self._file.execute("DELETE FROM pictures WHERE number <= ?", (going,))

    def _key(self, source: bytes) -> bytes:
        return hashlib.sha256(self._how + source).digest()

    def _give_up(self, error: Exception) -> None:
        warnings.warn(f"{self._path}: pictures are decoded and not kept: {error}", stacklevel=2)
        self.close()
