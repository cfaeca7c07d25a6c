"""Make room for tables of frozen states: where budget or disk are too small, those unused for longest go."""

from __future__ import annotations

import os
import shutil
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from pmmrec.errors import OTHER_CACHE, MachineError

Say = Callable[[str], None]
INDEX = "index.json"  # of a table; its time says when the table was last used
INCOMPLETE = ".incomplete"
SPARE_BYTES = 100_000_000  # left free on the disk of a cache
IN_USE_S = 3600  # a table that was used so lately is never removed for another
ABANDONED_S = 86_400  # what was left half-written for so long is nobody's work any more


class NoRoomError(MachineError):
    """A table cannot be kept: the disk or the budget is too small, or the cache cannot be written."""


def silent(line: str) -> None:
    """Where nobody listens."""


def make_room(folder: Path, num_bytes: int, budget: int, say: Say) -> None:
    """Remove tables unused for longest until `budget` and disk hold `num_bytes` more, for `folder`.

    What others are making counts with all that it will take, unless it is the same table, of which one will stay.
    NoRoomError, and nothing is removed, where that would not be enough.
    """
    cache = folder.parent
    cache.mkdir(parents=True, exist_ok=True)
    _sweep(cache)
    being_made = _being_made(cache, folder)  # first: what is put in its place meanwhile is counted there, too
    sizes = {path: _size(path) for path in cache.glob("prefix-*") if path != folder}
    unused = [path for path in sorted(sizes, key=_last_used) if time.time() - _last_used(path) > IN_USE_S]
    held, free = being_made + sum(sizes.values()), shutil.disk_usage(cache).free
    over_budget, over_disk = held + num_bytes - budget, num_bytes + SPARE_BYTES - free
    removable = sum(sizes[path] for path in unused)
    if over_budget > removable:
        raise NoRoomError(
            f"{cache}: frozen states need {num_bytes:,} bytes beside {held - removable:,} of tables in use; "
            f"prefix_budget_gb allows {budget:,}: raise it, or say prefix_cache=off"
        )
    if over_disk > removable:
        raise NoRoomError(
            f"{cache}: frozen states need {num_bytes:,} bytes and {SPARE_BYTES:,} to spare; {free + removable:,} can "
            f"be had: free some, name {OTHER_CACHE}, or say prefix_cache=off"
        )
    freed = 0
    for path in unused:
        if freed >= max(over_budget, over_disk):
            break
        unused_s = time.time() - _last_used(path)
        if unused_s <= IN_USE_S:
            continue  # somebody has just begun to use it
        if remove(path):
            say(f"{path}: frozen states not used for {unused_s / 3600:.1f} h made room for others")
        freed += sizes[path]


def _sweep(cache: Path) -> None:
    """Take away what processes that were killed have left half-written."""
    for path in cache.glob(f".prefix-*{INCOMPLETE}"):
        if time.time() - _last_touched(path) > ABANDONED_S:
            shutil.rmtree(path, ignore_errors=True)


def _being_made(cache: Path, folder: Path) -> int:
    """Bytes of other tables that somebody is making; what nobody has touched for long is left for the sweep."""
    others = [path for path in cache.glob(f".prefix-*{INCOMPLETE}") if not path.name.startswith(f".{folder.name}.")]
    return sum(_size(path) for path in others if time.time() - _last_touched(path) < IN_USE_S)


def _last_touched(folder: Path) -> float:
    try:
        return max(place.stat().st_mtime for place in (folder, *folder.iterdir()))
    except OSError:  # somebody is at work in it
        return time.time()


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:  # another process was faster to remove it
        return 0


def _last_used(folder: Path) -> float:
    try:
        return (folder / INDEX).stat().st_mtime
    except OSError:  # gone, or no table
        return 0.0


def mark_used(folder: Path) -> None:
    """A cache that is read only goes unmarked."""
    with suppress(OSError):
        os.utime(folder / INDEX)


def remove(folder: Path) -> bool:
    """Take a table away, under another name first, so that nobody finds a half of it; False: others were faster."""
    going = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{INCOMPLETE}")
    try:
        folder.rename(going)
    except OSError:
        return False
    shutil.rmtree(going, ignore_errors=True)
    return True
