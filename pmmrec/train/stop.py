"""Stop signals: the first stops the run at the next step boundary, a later one at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from pmmrec.errors import StoppedError
from pmmrec.launch import STOP_SIGNALS

SAME_S = 2.0  # launchers forward a signal that the whole group got already: such a repetition is no second request


class StopSignals:
    """Notes SIGTERM and SIGUSR1 while it is open; only in the main thread.

    A signal within `SAME_S` of the first counts as the same request, whichever signal it is.
    """

    def __init__(self) -> None:
        self.received: str | None = None  # the name of the first signal
        self._received_s = 0.0
        self._before: dict[signal.Signals, signal.Handlers | object] = {}

    def open(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = {sign: signal.signal(sign, self._receive) for sign in STOP_SIGNALS}

    def close(self) -> None:
        for sign, handler in self._before.items():
            signal.signal(sign, handler)  # type: ignore[arg-type]  # the value that signal.signal returned
        self._before = {}

    def ignore(self) -> None:
        """Ignore these signals from now on: the process has stopped its run and is about to exit."""
        for sign in self._before:
            signal.signal(sign, signal.SIG_IGN)
        self._before = {}

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.received is None:
            self.received, self._received_s = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - self._received_s > SAME_S:
            os._exit(StoppedError.exit_code)  # at once: no lock and no writing thread may delay it
