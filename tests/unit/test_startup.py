"""The garbage collector rests during a start, and works as ever afterwards."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from pmmrec import startup
from pmmrec.startup import collect_rarely, collecting_as_usual


class Cycle:
    """Refers to itself, so that only the collector frees it."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture(autouse=True)
def _thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.set_threshold(*before)


def test_what_was_there_before_repeated_work_is_freed_after_it() -> None:
    cycle = Cycle()
    known = weakref.ref(cycle)
    with collecting_as_usual():
        assert gc.get_freeze_count() > 0
        del cycle
        gc.collect()
        assert known() is not None
    assert gc.get_freeze_count() == 0
    gc.collect()
    assert known() is None


def test_thresholds_come_back_unless_somebody_set_others() -> None:
    collect_rarely()
    assert gc.get_threshold() != startup._USUAL
    with collecting_as_usual():
        assert gc.get_threshold() == startup._USUAL
    gc.set_threshold(123, 4, 5)
    with collecting_as_usual():
        assert gc.get_threshold() == (123, 4, 5)
