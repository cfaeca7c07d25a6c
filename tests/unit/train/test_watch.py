"""A step that never ends is told with its process, and ends the process; what is no step may last."""

from __future__ import annotations

import subprocess
import sys
import time

from pmmrec.train.watch import Doing, Place, Watch

HANGS = """
import time
from pmmrec.train.watch import Doing, Watch
watch = Watch(0.5, 0, 1)
with watch.open():
    for step in (1, 2, 3):
        watch.step(step, Doing.READING)
        time.sleep(0.2)
    watch.rest()
    time.sleep(1.5)
    watch.step(4, Doing.COMPUTING)
    def stuck(): time.sleep(60)
    watch.step(4, Doing.READING)
    stuck()
"""


def test_a_step_that_never_ends_ends_the_process_and_shows_where_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 4
    assert "error: step 4: process 0 of 1: reading in step 4 for more than 0.5 s; --resume goes on" in done.stderr
    assert "in stuck" in done.stderr


def test_steps_and_rests_that_end_in_time_end_nothing() -> None:
    watch = Watch(0.3, 0, 1)
    with watch.open():
        for step in range(5):
            watch.step(step, Doing.READING)
            watch.step(step, Doing.COMPUTING)
            time.sleep(0.1)
        watch.rest()
        time.sleep(0.8)


class _Others(Watch):
    def __init__(self, others: dict[int, Place]) -> None:
        super().__init__(60, 1, 4)
        self._told = others

    def _others(self) -> dict[int, Place]:
        return self._told


def test_the_one_that_is_behind_is_named_by_those_that_wait() -> None:
    waiting, behind = Place(7, Doing.WAITING), Place(7, Doing.READING)
    told = _Others({0: waiting, 2: behind, 3: waiting}).verdict(waiting)
    assert told.startswith("step 7: process 2 of 4: reading in step 7 for more than 60 s; process 1 is waiting")
    several = _Others({0: waiting, 2: Place(6, Doing.WAITING), 3: Place(6, Doing.WAITING)}).verdict(waiting)
    assert several.startswith("step 6: processes 2, 3 of 4: waiting in step 6")
