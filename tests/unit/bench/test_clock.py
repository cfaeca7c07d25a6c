"""The clock gives the time of a step to its stages, the innermost first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pmmrec.bench import clock as clock_module
from pmmrec.bench.clock import BACKWARD, REST, StageClock


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands still unless a test moves it."""
    now = [0.0]
    for name in ("process_time", "perf_counter"):
        monkeypatch.setattr(clock_module.time, name, lambda: now[0])
    return now


def test_time_inside_an_inner_stage_is_not_of_the_outer_one(ticks: list[float]) -> None:
    clock = StageClock(torch.device("cpu"))
    with clock.stage("outer"):
        ticks[0] += 1
        with clock.stage("inner"):
            ticks[0] += 2
        ticks[0] += 4
    ticks[0] += 8
    assert clock.end() == ({REST: 8, "outer": 5, "inner": 2}, 15)


def test_pauses_and_what_came_before_the_beginning_count_nowhere(ticks: list[float]) -> None:
    clock = StageClock(torch.device("cpu"))
    ticks[0] += 100
    clock.begin()
    ticks[0] += 1
    with clock.paused():
        ticks[0] += 50
        with clock.stage("text"):  # a watched module that is called outside of a step
            ticks[0] += 50
    ticks[0] += 2
    assert clock.end() == ({REST: 3}, 3)


def test_a_module_that_runs_again_on_the_way_back_belongs_to_the_backward(ticks: list[float]) -> None:
    clock, module = StageClock(torch.device("cpu")), _Slow(ticks)
    clock.watch_module(module, "text")
    module(torch.zeros(1))
    with clock.stage(BACKWARD):
        module(torch.zeros(1))
    seconds, _ = clock.end()
    assert (seconds["text"], seconds[BACKWARD]) == (3, 3)


class _Slow(nn.Module):
    """Takes three seconds."""

    def __init__(self, ticks: list[float]) -> None:
        super().__init__()
        self._ticks = ticks

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self._ticks[0] += 3
        return x
