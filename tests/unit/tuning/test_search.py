"""A search ends when it has enough trials or no untried point is left."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

from pmmrec.tuning.search import Search


def test_an_exhausted_search_says_so_once_and_ends() -> None:
    said: list[str] = []
    search = object.__new__(Search)
    search._plan, search._active, search._say = Mock(trials=30, jobs=2, timeout_min=None), {}, said.append
    search._record = Mock(**{"propose.return_value": None, "endings.return_value": [Mock()] * 6})
    search._space = Mock(source=Path("space.yaml"), num_points=6)
    search._work(0)
    assert said == ["space.yaml: all of its 6 points were tried; no further trial"]
