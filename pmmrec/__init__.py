"""Recommenders that transfer: items are what they are, users the order of what they touched.

>>> import pmmrec
>>> system = pmmrec.load("hub/NAME")            # a checkpoint, by folder or by name in a hub
>>> items = system.encode_items("DOMAIN")       # vectors of a catalogue, also one never seen in training
>>> system.recommend(["item-7", "item-3"], k=5)  # (item id, score), best first
>>> run = pmmrec.fit("zoo/ids/small/sasrec", "name=first", on="DOMAIN", start_from="none")
>>> run.metrics["DOMAIN"]["ndcg@10"]  # and run.system
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmmrec.programs import fit
    from pmmrec.serving.candidates import EncodedItems
    from pmmrec.system import System, load

# Threads of OpenMP that wait for one another spin, which takes the processor from them and from everybody else where
# it is busy: with two threads on a busy machine of two cores, a step took nine times the CPU time. They read this when
# torch is loaded, so it stands where every program of ours and every notebook comes by first. What is set already wins.
for _setting, _value in {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}.items():
    os.environ.setdefault(_setting, _value)

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
