"""Stop signals: the first one stops the run at the next boundary, a later one at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from pmmrec.errors import StoppedError

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
SAME_S = 2.0  # launchers pass a signal on that came to their whole group: what follows so closely is no second one


class StopSignals:
    """Notes SIGTERM and SIGUSR1 while it is open; only in the main thread.

    A signal within `SAME_S` of the first counts as the same request, whichever signal it is.
    """

    def __init__(self) -> None:
        self.heard: str | None = None  # the name of the first signal
        self._heard_s = 0.0
        self._before: dict[signal.Signals, signal.Handlers | object] = {}

    def open(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {sign: signal.signal(sign, self._hear) for sign in SIGNALS}

    def close(self) -> None:
        for sign, handler in self._before.items():
            signal.signal(sign, handler)  # type: ignore[arg-type]  # it is what signal.signal gave us
        self._before = {}

    def ignore(self) -> None:
        """Ignore these signals from now on: this process has done what it was asked to, and ends."""
        for sign in self._before:
            signal.signal(sign, signal.SIG_IGN)
        self._before = {}

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.heard is None:
            self.heard, self._heard_s = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._heard_s > SAME_S:
            os._exit(StoppedError.exit_code)  # at once: neither a lock nor a thread that writes may hold it up
