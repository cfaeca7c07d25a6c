"""Serving: write top-k lists for the users of a platform, or export an index of its items for a service.

>>> from pmmrec.serving import load_index
>>> index = load_index("DIR")                    # the output of `pmmrec index CHECKPOINT DOMAIN --out DIR`
>>> index.recommend(["item-7", "item-3"], k=5)   # pairs of item id and score, best first
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmmrec.serving.service import ItemIndex, load_index

__all__ = ["ItemIndex", "load_index"]


def __getattr__(name: str) -> Any:
    """Import the service, and torch with it, on first use."""
    if name in __all__:
        from pmmrec.serving import service

        return getattr(service, name)
    raise AttributeError(f"module 'pmmrec.serving' has no attribute {name!r}")
