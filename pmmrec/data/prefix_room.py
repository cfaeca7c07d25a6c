"""Make room for tables of frozen states: remove the least recently used where the budget or the disk is too small."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from pmmrec.data.cache import INCOMPLETE, INDEX, SPARE_BYTES, Say, last_touched, remove
from pmmrec.errors import OTHER_CACHE, MachineError

IN_USE_S = 3600  # a table that was used this recently is never removed


class NoRoomError(MachineError):
    """A table cannot be kept: the disk or the budget is too small, or the cache cannot be written."""


def make_room(folder: Path, num_bytes: int, budget: int, say: Say) -> None:
    """Remove the least recently used tables until `budget` and disk have room for `num_bytes` more, for `folder`.

    Tables that other processes are making count with their final size. Raises NoRoomError, and removes nothing, where
    that would not be enough.
    """
    cache = folder.parent
    being_made = _being_made(cache, folder)  # first: a table that is completed meanwhile is then counted below
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
            continue  # another process has just begun to use it
        if remove(path):
            say(f"{path}: frozen states not used for {unused_s / 3600:.1f} h made room for others")
        freed += sizes[path]


def _being_made(cache: Path, folder: Path) -> int:
    """Bytes of other tables that processes are making; those that nobody has touched for long do not count."""
    others = [path for path in cache.glob(f".prefix-*{INCOMPLETE}") if not path.name.startswith(f".{folder.name}.")]
    return sum(_size(path) for path in others if time.time() - last_touched(path) < IN_USE_S)


def _size(folder: Path) -> int:
    try:
        return sum(file.stat().st_size for file in folder.iterdir())
    except OSError:  # another process was faster to remove it
        return 0


def _last_used(folder: Path) -> float:
    try:
        return (folder / INDEX).stat().st_mtime
    except OSError:  # removed, or not a table
        return 0.0
