"""Start quickly: Python's garbage collector rests while modules are imported and models are built.

Importing torch and transformers makes millions of objects that live as long as the process. The collector visits them
again and again, which takes a fifth of a start's CPU time, and finds nothing to free.
"""

from __future__ import annotations

import atexit
import gc

_RARELY = (100_000, 50, 1000)
_USUAL = gc.get_threshold()


def collect_rarely() -> None:
    """Call first in a program."""
    gc.set_threshold(*_RARELY)


def collect_as_usual() -> None:
    """Call before the work that repeats; what exists by now is not visited again."""
    gc.freeze()
    atexit.register(gc.unfreeze)  # or bindings to native code report all that is left as leaks
    gc.set_threshold(*_USUAL)
