"""A first signal is noted, what follows closely is the same one, a second ends the process at once."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

from pmmrec.train.stop import SAME_S, StopSignals


def test_a_signal_is_heard_by_its_name_and_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    signals = StopSignals()
    signals.open()
    assert signals.heard is None
    signal.raise_signal(signal.SIGUSR1)
    signal.raise_signal(signal.SIGTERM)  # a launcher passes on what its whole group was sent
    assert signals.heard == "SIGUSR1"
    signals.close()
    assert signal.getsignal(signal.SIGUSR1) is before


def test_outside_the_main_thread_nothing_is_heard_and_nothing_breaks() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signals = StopSignals()
    thread = threading.Thread(target=signals.open)
    thread.start()
    thread.join()
    signals.close()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_process_at_once() -> None:
    program = (
        "import time; from pmmrec.train.stop import StopSignals; s = StopSignals(); s.open(); print('up', flush=True)\n"
        "while True: time.sleep(0.05)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        time.sleep(SAME_S + 0.5)
        assert process.poll() is None
        process.send_signal(signal.SIGUSR1)
        assert process.wait(timeout=20) == 75
    finally:
        process.kill()
        process.wait()
