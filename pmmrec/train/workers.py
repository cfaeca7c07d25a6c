"""Did training break because a process that reads data has ended?"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from contextlib import suppress

from torch.utils.data import dataloader

_SIGNAL_S = 0.2  # within which the system tells of a process that has ended


def is_of_lost_worker(error: Exception) -> bool:
    """Whether a process that reads data has ended: torch says so, or what it was handing over was cut off."""
    is_told = isinstance(error, RuntimeError) and "DataLoader worker (pid" in str(error)
    frames = traceback.extract_tb(error.__traceback__)
    if not is_told and (isinstance(error, RuntimeError) or all(f.filename != dataloader.__file__ for f in frames)):
        return False
    with suppress(RuntimeError):  # a signal tells of it once more, and torch raises wherever that comes
        time.sleep(_SIGNAL_S)
        multiprocessing.active_children()
    return True
