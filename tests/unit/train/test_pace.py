"""A training that is far slower than the same one before says so, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmmrec.train.pace import PACE_FILE, Pace

SAME = {"steps": 10}


def _ran(folder: Path, *rates: float, training: dict[str, int] = SAME) -> list[str]:
    """What a run of these rates tells; they are kept in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pace = Pace(folder, training)
    told = [pace.hint(rate) for rate in rates]
    pace.keep()
    return [hint for hint in told if hint]


def test_a_run_far_slower_than_the_same_training_before_says_so_once(tmp_path: Path) -> None:
    assert _ran(tmp_path / "one", 60, 61, 62, 61) == []
    (hint,) = _ran(tmp_path / "two", 8, 8, 8, 8, 8)
    assert hint.startswith("8 users/s, less than half of the 61 the same training had in one; load ")


def test_one_slow_line_is_no_reason(tmp_path: Path) -> None:
    _ran(tmp_path / "one", 60, 60, 60)
    assert _ran(tmp_path / "two", 60, 5, 60, 60, 5, 60) == []


def test_a_run_that_slows_down_says_so(tmp_path: Path) -> None:
    (hint,) = _ran(tmp_path / "one", 60, 60, 60, 60, 60, 60, 8, 8, 8)
    assert "less than half of the 60 earlier in this run" in hint


def test_another_training_is_no_measure(tmp_path: Path) -> None:
    _ran(tmp_path / "one", 60, 60, 60)
    assert _ran(tmp_path / "two", 8, 8, 8, training={"steps": 11}) == []


@pytest.mark.parametrize("broken", ["", "[]", "{}", '{"training": 1}'])
def test_a_broken_record_is_passed_over(tmp_path: Path, broken: str) -> None:
    _ran(tmp_path / "one", 60, 60, 60)
    (tmp_path / "one" / PACE_FILE).write_text(broken)
    assert _ran(tmp_path / "two", 8, 8, 8) == []


def test_a_run_without_a_folder_keeps_nothing() -> None:
    pace = Pace(None, SAME)
    assert [pace.hint(rate) for rate in (8.0, 8.0, 8.0)] == [None] * 3
    pace.keep()
