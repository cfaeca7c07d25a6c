"""The demo world is made as a whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmmrec.errors import MachineError
from pmmrec.report import domains


def test_an_unfinished_world_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: object) -> None:
        raise MachineError("the disk is full")

    monkeypatch.setattr(domains, "import_table", refuse)
    with pytest.raises(MachineError, match="the disk is full"):
        list(domains.make_demo_world(tmp_path / "demo", seed=1))
    assert not list(tmp_path.iterdir())
