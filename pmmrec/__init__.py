"""Recommenders that transfer: items are what they are, users the order of what they touched.

>>> import pmmrec
>>> system = pmmrec.load("hub/NAME")            # a checkpoint, by folder or by name in a hub
>>> items = system.encode_items("DOMAIN")       # vectors of a catalogue, also one never seen in training
>>> system.recommend(["item-7", "item-3"], k=5)  # (item id, score), best first
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmmrec.programs import fit
    from pmmrec.serving.offer import EncodedItems
    from pmmrec.system import System, load

__version__ = "0.1.0"
__all__ = ["EncodedItems", "System", "fit", "load"]


def __getattr__(name: str) -> Any:
    """Import torch and the rest when something is first asked for."""
    if name == "fit":
        from pmmrec.programs import fit

        return fit
    if name in __all__:
        from pmmrec import system

        return getattr(system, name)
    raise AttributeError(f"module 'pmmrec' has no attribute {name!r}")
