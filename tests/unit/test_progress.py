"""How far long work has come, told by lines."""

from __future__ import annotations

import pytest

from pmmrec import progress
from pmmrec.progress import Lines, bars, bars_or_lines, duration


def test_a_line_comes_once_a_minute_and_tells_the_pace_of_its_kind_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [100.0], list[str]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = Lines(said.append)
    for now_s, stage, done in [(100, "items", 10), (159, "items", 600), (160, "items", 610), (190, "users", 1000)]:
        clock[0] = now_s
        lines(stage, done, 5000)
    assert said == ["items: 610/5,000  10/s  ETA 0:07:19"]
    clock[0] = 220
    lines("users", 4000, 5000)
    assert said[1:] == ["users: 4,000/5,000  100/s  ETA 0:00:10"]


def test_where_no_bar_can_be_drawn_lines_go_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with bars_or_lines(None) as shown, bars(is_shown=False) as hidden:
        for now_s in (0.0, 30.0, 90.0):
            clock[0] = now_s
            shown("items", int(now_s), 180)
            hidden("users", int(now_s), 180)
    assert capsys.readouterr() == ("", "items: 90/180  1/s  ETA 0:01:30\n")


def test_lines_go_to_whoever_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with bars_or_lines(lambda _line: None) as told:
        told("items", 1, 2)
    assert isinstance(told, Lines)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("seconds", "shown"), [(0.4, "0:00:00"), (71.6, "0:01:12"), (97500, "27:05:00")])
def test_durations_are_hours_minutes_and_seconds(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown
