"""Find the home folder of a user, and the folder of caches in it."""

from __future__ import annotations

import os
from pathlib import Path

from pmmrec.errors import OTHER_CACHE, RecipeError

CACHES = Path("~/.cache")
CACHE = CACHES / "pmmrec"  # unless --cache or cache= names another


def expanded(path: Path) -> Path:
    """`path` with the home folder in the place of a leading `~`. RecipeError when there is no such home.

    `~/.cache` is the folder of caches: XDG_CACHE_HOME names another, here as everywhere on Linux.
    """
    is_cached, caches = path.parts[:2] == CACHES.parts, Path(os.environ.get("XDG_CACHE_HOME", ""))
    if is_cached and caches.is_absolute():
        return caches.joinpath(*path.parts[2:])
    try:
        return path.expanduser()
    except RuntimeError as error:
        if is_cached:
            other = f", or name {OTHER_CACHE}" if path == CACHE else ""  # copies of checkpoints lie nowhere else
            raise RecipeError(f"{path}: there is no home folder here; set XDG_CACHE_HOME{other}") from error
        raise RecipeError(f"{path}: {path.parts[0]} is nobody's home folder here; write the whole path") from error
