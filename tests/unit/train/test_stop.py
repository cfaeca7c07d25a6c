"""The first stop signal is noted, a repetition is ignored, and a second one ends the process at once."""

from __future__ import annotations

import signal
import threading

from forked import in_child

from pmmrec.train import stop
from pmmrec.train.stop import StopSignals


def test_a_signal_is_noted_by_name_and_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    signals = StopSignals()
    signals.open()
    assert signals.received is None
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)  # a launcher passes on what its whole group was sent
    assert signals.received == "SIGUSR1"
    signals.close()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_outside_the_main_thread_no_handler_is_set() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    thread = threading.Thread(target=signals.open)
    thread.start()
    thread.join()
    signals.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_process_at_once() -> None:
    def asked_twice() -> None:
        StopSignals().open()
        signal.raise_signal(signal.SIGTERM)
        stop.SAME_S = 0.0  # so that what comes now is no part of the first
        signal.raise_signal(signal.SIGUSR1)
        raise AssertionError("it goes on")

    in_child(asked_twice, code=75)
