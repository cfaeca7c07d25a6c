"""How far long work has come, told by lines."""

from __future__ import annotations

import pytest

from pmmrec import progress
from pmmrec.progress import Lines, bars_or_lines


def test_a_line_comes_once_a_minute_and_tells_the_pace_of_its_kind_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [100.0], list[str]()
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = Lines(said.append)
    for now_s, stage, done in [(100, "items", 10), (159, "items", 600), (160, "items", 610), (190, "users", 1000)]:
        clock[0] = now_s
        lines(stage, done, 5000)
    assert said == ["items: 610/5,000  10/s"]
    clock[0] = 220
    lines("users", 4000, 5000)
    assert said[1:] == ["users: 4,000/5,000  100/s"]


def test_lines_go_to_whoever_is_told_and_bars_stay_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with bars_or_lines(lambda _line: None) as told, bars_or_lines(None) as shown:
        assert isinstance(told, Lines)
        assert not isinstance(shown, Lines)
        shown("items", 1, 2)
    assert capsys.readouterr() == ("", "")
