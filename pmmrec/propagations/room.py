"""Refuse a graph that does not fit into the memory of this machine, before it is built."""

from __future__ import annotations

import psutil

from pmmrec.errors import RecipeError


def check_room(what: str, num_bytes: int) -> None:
    """RecipeError where this machine has fewer bytes free than a graph takes."""
    free = psutil.virtual_memory().available
    if num_bytes > free:
        raise RecipeError(
            f"model.propagation: {what} take {num_bytes:,} bytes, and {free:,} are free; train on a smaller domain, or "
            "on a machine with more memory"
        )
