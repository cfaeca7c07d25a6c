"""What a loss of power leaves: a file is on the disk before it takes its name, and then so is the name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pmmrec.atomic import make_folder, whole_file
from pmmrec.train.state import Position, State, StateFolder
from pmmrec.zoo import files


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the system is asked to make sure of, and to rename, in order; paths below `tmp_path`."""
    asked: list[str] = []
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def place(path: str | os.PathLike[str]) -> str:
        return Path(path).relative_to(tmp_path).as_posix()

    def seen_fsync(descriptor: int) -> None:
        asked.append(f"flush {place(Path(f'/proc/self/fd/{descriptor}').readlink())}")
        fsync(descriptor)

    def seen_replace(old: Path, new: Path) -> None:
        asked.append(f"rename {place(old)} {place(new)}")
        replace(old, new)

    def seen_rename(old: Path, new: Path) -> None:
        asked.append(f"rename {place(old)} {place(new)}")
        rename(old, new)

    monkeypatch.setattr(os, "fsync", seen_fsync)
    monkeypatch.setattr(os, "replace", seen_replace)
    monkeypatch.setattr(os, "rename", seen_rename)
    return asked


def test_a_whole_file_is_on_the_disk_before_it_takes_its_name(tmp_path: Path, calls: list[str]) -> None:
    with whole_file(tmp_path / "recipe.yaml") as draft:
        draft.write_text("name: one\n")
    assert calls == [
        "flush recipe.yaml.incomplete",
        "rename recipe.yaml.incomplete recipe.yaml",
        "flush .",
    ]


def test_every_folder_that_is_made_is_on_the_disk(tmp_path: Path, calls: list[str]) -> None:
    make_folder(tmp_path / "runs" / "one" / "state")
    make_folder(tmp_path / "runs" / "one")
    assert sorted(calls) == ["flush .", "flush runs", "flush runs/one"]


def test_a_whole_folder_is_on_the_disk_with_all_above_it(tmp_path: Path, calls: list[str]) -> None:
    with files.writing(tmp_path / "runs" / "one", replace=False) as draft:
        (draft / "weights").write_text("1")
    assert calls == [
        "flush .",
        "flush runs/one.incomplete/weights",
        "flush runs/one.incomplete",
        "rename runs/one.incomplete runs/one",
        "flush runs",
    ]


def test_with_a_state_all_that_a_run_needs_to_go_on_from_it_is_on_the_disk(tmp_path: Path, calls: list[str]) -> None:
    (tmp_path / "run" / "state").mkdir(parents=True)  # a best checkpoint that is held makes it first
    StateFolder(tmp_path / "run" / "state").save(Position(1, 1), State({}, {}), None)
    assert {"flush run", "flush run/state"} < set(calls)
