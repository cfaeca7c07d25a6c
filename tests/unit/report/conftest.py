"""Run folders to compare."""

from __future__ import annotations

from pathlib import Path

import pytest
from ranked_runs import MakeRun, runs_in


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    return runs_in(tmp_path)
