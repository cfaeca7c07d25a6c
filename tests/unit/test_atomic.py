"""Files and folders appear whole, by one writer, and are on the disk before they take their names."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

import pytest

from pmmrec.atomic import make_folder, sole_writer, whole_file
from pmmrec.errors import RecipeError
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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_of_two_who_write_one_file_the_second_is_refused_and_the_first_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "topk.parquet"
    with whole_file(path) as first:
        first.write_text("first")
        with (
            pytest.raises(RecipeError, match=r"topk\.parquet: being written by another process; wait"),
            whole_file(path),
        ):
            pass
    assert path.read_text() == "first"
    assert names(tmp_path) == ["topk.parquet"]


def test_a_file_that_came_to_be_meanwhile_is_kept_where_it_is_not_to_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text("first")
    with pytest.raises(RecipeError, match=r"page\.html: exists"), whole_file(path, replace=False):
        pass
    assert path.read_text() == "first"
    with whole_file(path) as draft:
        draft.write_text("second")
    assert path.read_text() == "second"


def test_the_lock_of_a_killed_writer_holds_nobody_up(tmp_path: Path) -> None:
    (tmp_path / ".a.lock").touch()
    (tmp_path / "a.incomplete").write_text("half of somethi")
    with whole_file(tmp_path / "a") as draft:
        draft.write_text("whole")
    assert (tmp_path / "a").read_text() == "whole"
    assert names(tmp_path) == ["a"]


def test_a_writer_whose_lock_file_was_removed_by_the_one_before_makes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flock, lock = fcntl.flock, tmp_path / ".a.lock"
    left = [1]

    def late(handle: int, operation: int) -> None:
        if left and left.pop():
            lock.unlink()  # as its holder does between the opening and the locking here
        flock(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with sole_writer(tmp_path / "a"):
        with pytest.raises(RecipeError, match="being written"), sole_writer(tmp_path / "a"):
            pass
        assert lock.exists()
    assert names(tmp_path) == []


def test_a_disk_without_locks_is_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unknown)
    with whole_file(tmp_path / "a") as draft:
        draft.write_text("whole")
    assert names(tmp_path) == ["a"]
