"""Serving: lists for all users of a platform, and an index of its items that a service can load.

>>> from pmmrec.serving import load_index
>>> index = load_index("DIR")                    # what `pmmrec index CHECKPOINT DOMAIN --out DIR` wrote
>>> index.recommend(["item-7", "item-3"], k=5)   # (item id, score), best first
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmmrec.serving.service import ItemIndex, load_index

__all__ = ["ItemIndex", "load_index"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest when something is first asked for."""
    if name in __all__:
        from pmmrec.serving import service

        return getattr(service, name)
    raise AttributeError(f"module 'pmmrec.serving' has no attribute {name!r}")
