"""A run that fails before its first event leaves no folder; one that fails later keeps what it has."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pmmrec.errors import DataError, RecipeError
from pmmrec.train.processes import MachineConfig
from pmmrec.train.run import Run


@dataclass(frozen=True)
class _Recipe:
    folder: Path
    name: str = "one"
    machine: MachineConfig = field(default=MachineConfig(device="cpu"))

    def to_yaml(self) -> str:
        return "name: one\n"


def test_a_run_starts_with_recipe_and_environment(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        made = {"recipe.yaml", "environment.json", "events.jsonl", "lock"}
        assert {path.name for path in run.folder.iterdir()} == made
        assert (run.folder / "recipe.yaml").read_text() == "name: one\n"


def test_a_run_that_fails_before_its_first_event_takes_its_folder_away(tmp_path: Path) -> None:
    with pytest.raises(DataError), Run.start(_Recipe(tmp_path / "one")):
        raise DataError("bad")
    assert not (tmp_path / "one").exists()


def test_a_run_that_fails_later_keeps_its_events(tmp_path: Path) -> None:
    run = Run.start(_Recipe(tmp_path / "one"))
    run.log.event("train", 1, loss=2.0)
    with pytest.raises(DataError), run:
        raise DataError("bad")
    assert '"loss": 2.0' in (tmp_path / "one" / "events.jsonl").read_text()


def test_a_second_run_of_the_same_name_does_not_touch_the_first(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        run.log.event("train", 1)
    with pytest.raises(RecipeError, match="this run exists"):
        Run.start(_Recipe(tmp_path / "one"))
    assert (tmp_path / "one" / "events.jsonl").stat().st_size
