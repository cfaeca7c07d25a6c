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
    with suppress(RuntimeError):  # a signal tells of it once more, and torch raises wherever that comes
        time.sleep(_SIGNAL_S)
        multiprocessing.active_children()
    if isinstance(error, RuntimeError):
        return "DataLoader worker (pid" in str(error)
    return any(frame.f_code.co_filename == dataloader.__file__ for frame, _ in traceback.walk_tb(error.__traceback__))
