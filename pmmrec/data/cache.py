"""Keep what is costly to compute in a cache: one folder for each result, written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from pmmrec.atomic import caching_in
from pmmrec.data.info import FileRecord
from pmmrec.data.write import record_of
from pmmrec.errors import OTHER_CACHE, MachineError

Say = Callable[[str], None]
_Result = TypeVar("_Result")

FORMAT = 2  # part of every key: a change of layout makes new entries
INDEX = "index.json"  # of an entry; its modification time says when the entry was last used
INCOMPLETE = ".incomplete"
SPARE_BYTES = 100_000_000  # left free on the disk of a cache
MAX_VERIFIED_BYTES = 4_000_000_000  # larger files are checked by their size alone: reading them would take minutes
ATTEMPTS = 3  # to open an entry that other processes remove meanwhile
ABANDONED_S = 86_400  # an unfinished entry that nobody has touched for so long is removed
_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP)  # a file system without locks


def silent(line: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class ContentCache:
    """A folder of entries. `say` is told when an entry was damaged, and when another process is waited for."""

    folder: Path
    say: Say = silent

    def entry(
        self, kind: str, what: str, inputs: Mapping[str, str | int], error: type[MachineError] = MachineError
    ) -> CacheEntry:
        """The entry whose content depends on `inputs` and on nothing else.

        Args:
            kind: Begins the name of its folder; the key, a SHA-256 of the inputs, ends it.
            what: Names its content in messages, in the plural.
            inputs: Fingerprints of data and weights, settings, releases of libraries.
            error: Raised where it cannot be kept.
        """
        told = json.dumps({**inputs, "format": FORMAT}, sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()[:32]
        return CacheEntry(self.folder / f"{kind}-{key}", what, self.say, error)


@dataclass(frozen=True)
class CacheEntry:
    """One result: a folder of files, and an index of their sizes and checksums. `open` is the way to it."""

    folder: Path
    what: str
    say: Say
    error: type[MachineError]

    def piece(self, number: int) -> CacheEntry:
        """One of several entries that together make up this one; each is made and opened alone."""
        return CacheEntry(self.folder / f"{number:06d}", self.what, self.say, self.error)

    @property
    def is_being_made(self) -> bool:
        """Whether another process is making the entry, or was killed while it did."""
        return self._lock.exists()

    @property
    def _lock(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.lock")

    def open(self, make: Callable[[Path], None] | None, read: Callable[[Path], _Result]) -> _Result:
        """What `read` returns for the folder of the entry; where it is missing or damaged, `make` fills it first.

        `make` writes files into a new folder, which gets its name when it is complete. One process makes an entry,
        others wait for it. A cache that is read only serves the entries that it holds. Raises `error` where the entry
        cannot be written, where others remove it again and again, or where it is missing and `make` is None.
        """
        for _ in range(ATTEMPTS):
            mark_used(self.folder)  # first: the check of a large entry takes a while, and nobody may remove it then
            if not is_whole(self.folder):
                if make is None:
                    raise self.error(f"{self.folder}: no {self.what} are kept there, and none are made now")
                self._make(make)
            with suppress(FileNotFoundError):  # another process has just removed it
                return read(self.folder)
        raise self.error(
            f"{self.folder}: other processes removed {self.what} {ATTEMPTS} times while they were opened; raise "
            f"prefix_budget_gb, or name {OTHER_CACHE}"
        )

    def _make(self, make: Callable[[Path], None]) -> None:
        cache = self.folder.parent
        with caching_in(cache, self.what, self.error):
            cache.mkdir(parents=True, exist_ok=True)
            with self._locked() as is_alone:
                if is_whole(self.folder):
                    return  # another process made it meanwhile
                if self.folder.exists():
                    self.say(f"{self.folder}: was damaged; {self.what} are made again")
                _sweep(cache, of=self.folder.name if is_alone else None)
                incomplete = incomplete_of(self.folder)
                try:
                    incomplete.mkdir()
                    make(incomplete)
                    _write_index(incomplete)
                    _put_in_place(incomplete, self.folder)
                finally:
                    shutil.rmtree(incomplete, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Wait until no other process makes this entry. False: the file system has no locks, and others may."""
        lock = FileLock(self._lock)
        try:
            try:
                lock.acquire(timeout=0)
            except Timeout:
                self.say(f"{self.folder}: waiting for {self.what}, which another process is making")
                lock.acquire()
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            yield False
            return
        try:
            yield True
        finally:
            with suppress(OSError):
                self._lock.unlink()  # before the release: whoever locks the old file next looks for the entry first
            lock.release()


def is_whole(folder: Path) -> bool:
    """Whether all files of an entry have the sizes and the content that its index says."""
    try:
        files = json.loads((folder / INDEX).read_text(encoding="utf-8"))["files"]
        records = {folder / name: FileRecord.model_validate(told) for name, told in files.items()}
        if not records or any(path.stat().st_size != record.num_bytes for path, record in records.items()):
            return False
        checked = {path: record for path, record in records.items() if record.num_bytes <= MAX_VERIFIED_BYTES}
        return all(record_of(path) == record for path, record in checked.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # ValidationError is a ValueError
        return False


def incomplete_of(folder: Path) -> Path:
    """A new hidden name for an entry that is not complete yet, or no longer."""
    return folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{INCOMPLETE}")


def mark_used(folder: Path) -> None:
    """Say that an entry is in use now; in a cache that is read only nothing is said."""
    with suppress(OSError):
        os.utime(folder / INDEX)


def remove(folder: Path) -> bool:
    """Remove an entry, under a hidden name, so that nobody finds a part of it. False: others were faster."""
    going = incomplete_of(folder)
    try:
        folder.rename(going)
    except OSError:
        return False
    shutil.rmtree(going, ignore_errors=True)
    return True


def last_touched(folder: Path) -> float:
    """When a file of a folder, or the folder itself, was last written."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except OSError:  # another process is at work in it
        return time.time()


def _sweep(cache: Path, of: str | None) -> None:
    """Remove what killed processes left: unfinished entries of long ago, and those `of` the entry that is locked."""
    for path in cache.glob(f".*{INCOMPLETE}"):
        is_own = of is not None and path.name.startswith(f".{of}.")
        if is_own or time.time() - last_touched(path) > ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)


def _write_index(folder: Path) -> None:
    files = {path.name: record_of(path).model_dump() for path in sorted(folder.iterdir())}
    (folder / INDEX).write_text(json.dumps({"files": files}), encoding="utf-8")


def _put_in_place(incomplete: Path, folder: Path) -> None:
    """Rename; a damaged entry is removed for it, a whole one of another process holds the same and stays."""
    for _ in range(ATTEMPTS):
        with suppress(OSError):
            incomplete.rename(folder)
            return
        if is_whole(folder):
            return
        remove(folder)
    incomplete.rename(folder)
