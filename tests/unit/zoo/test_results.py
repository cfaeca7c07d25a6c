"""Figures and card of a checkpoint can be replaced."""

from pathlib import Path

import pytest

from pmmrec.errors import CheckpointError
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.results import restate


def test_figures_and_card_are_replaced_without_touching_the_rest(saved: Path, saved_copy: Path) -> None:
    restate(saved_copy, metrics={"test/hr@10": 0.5}, card="# new\n")
    checkpoint = Checkpoint.open(saved_copy)
    assert checkpoint.verify() == []
    assert checkpoint.metrics == {"test/hr@10": 0.5}
    assert (saved_copy / "README.md").read_text() == "# new\n"
    assert checkpoint.parts == Checkpoint.open(saved).parts
    assert [path.name for path in saved_copy.parent.iterdir()] == [saved_copy.name]


def test_a_killed_replacement_of_figures_is_recovered(saved_copy: Path) -> None:
    saved_copy.rename(saved_copy.with_name(saved_copy.name + ".previous"))
    restate(saved_copy, metrics={}, card="# new\n")
    assert Checkpoint.open(saved_copy).verify() == []
    assert (saved_copy / "README.md").read_text() == "# new\n"


def test_a_folder_that_is_not_a_checkpoint_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="not a checkpoint"):
        restate(tmp_path, metrics={}, card="")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
