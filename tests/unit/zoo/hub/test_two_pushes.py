"""Of concurrent pushes to one URL one wins, and its checkpoint is complete."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from url_places import names_at

from pmmrec.errors import PMMRecError, RecipeError
from pmmrec.zoo.checkpoint import open_checkpoint
from pmmrec.zoo.hub import PushOptions, push_checkpoint, url_push
from pmmrec.zoo.hub.url_push import POINTER, UrlPush
from pmmrec.zoo.origin import Origin

HUB = Path("hub")
REPLACE = PushOptions(replace=True)


@pytest.fixture
def disk(tmp_path: Path) -> str:
    """An empty URL on a disk, for most tests: object stores differ in the creation of the pointer and in times."""
    return f"file://{tmp_path}/disk/first"


@pytest.fixture
def third_saved(other: Any, tmp_path: Path) -> Path:
    """A checkpoint that differs from both others only in its index."""
    other.save(tmp_path / "third")
    index = tmp_path / "third" / "model_index.json"
    index.write_text(index.read_text().replace("{", "{ ", 1))
    return tmp_path / "third"


def held_at(moment: str, monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], object], *, call: int = 1) -> None:
    """Do `meanwhile` once, right before the `call`-th call of a method of a push."""
    method, calls = getattr(UrlPush, moment), [0]

    def held(self: UrlPush, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            meanwhile()
        return method(self, *arguments)

    monkeypatch.setattr(UrlPush, moment, held)


def published_at(url: str) -> Origin:
    """The origin of the complete checkpoint at a URL."""
    checkpoint = open_checkpoint(url, HUB, warn=lambda _: None)
    assert checkpoint.verify() == []
    return checkpoint.origin


def test_of_two_first_pushes_the_one_that_ends_first_wins(
    saved: Path, other_saved: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    won: list[Origin] = []
    held_at("_create", monkeypatch, lambda: won.append(push_checkpoint(other_saved, url, HUB, PushOptions())))
    with pytest.raises(RecipeError, match=r"exists already: another push put commit \w+ there meanwhile"):
        push_checkpoint(saved, url, HUB, PushOptions())
    assert published_at(url) == won[0]


@pytest.mark.parametrize(("moment", "call"), [("_put", 5), ("_put", 1), ("_lacking", 1)])
def test_the_slower_push_loses_at_every_step(
    saved: Path, other_saved: Path, disk: str, moment: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    won: list[Origin] = []
    held_at(moment, monkeypatch, lambda: won.append(push_checkpoint(other_saved, disk, HUB, PushOptions())), call=call)
    with pytest.raises(RecipeError, match="exists already: another push put commit"):
        push_checkpoint(saved, disk, HUB, PushOptions())
    assert published_at(disk) == won[0]


@pytest.mark.parametrize("moment", ["_put", "_create"])
def test_of_two_first_pushes_of_one_checkpoint_one_wins_and_its_files_stay(
    saved: Path, disk: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    won: list[Origin] = []
    held_at(moment, monkeypatch, lambda: won.append(push_checkpoint(saved, disk, HUB, PushOptions())))
    with pytest.raises(RecipeError, match="exists already: another push"):
        push_checkpoint(saved, disk, HUB, PushOptions())
    assert published_at(disk) == won[0]
    assert names_at(disk) == {POINTER, won[0].commit}


def test_pushes_in_threads_leave_one_winner(saved: Path, other_saved: Path, disk: str) -> None:
    ready, won, lost = threading.Barrier(4), list[Origin](), list[RecipeError]()

    def push(folder: Path) -> None:
        ready.wait()
        try:
            won.append(push_checkpoint(folder, disk, HUB, PushOptions()))
        except RecipeError as error:
            lost.append(error)

    threads = [threading.Thread(target=push, args=(folder,)) for folder in (saved, other_saved) * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [published_at(disk)] == won
    assert len(lost) == 3


@pytest.mark.parametrize("moment", ["_put", "_lacking"])
def test_a_push_cannot_replace_a_checkpoint_that_appeared_after_it_began(
    saved: Path, other_saved: Path, third_saved: Path, disk: str, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_checkpoint(saved, disk, HUB, PushOptions())
    won: list[Origin] = []
    held_at(moment, monkeypatch, lambda: won.append(push_checkpoint(third_saved, disk, HUB, REPLACE)))
    with pytest.raises(RecipeError, match="another push put commit"):
        push_checkpoint(other_saved, disk, HUB, REPLACE)
    assert published_at(disk) == won[0]


def test_files_uploaded_again_during_a_cleanup_stay(
    saved: Path, other_saved: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_checkpoint(saved, url, HUB, PushOptions())
    again: list[Origin] = []
    held_at("_delete", monkeypatch, lambda: again.append(push_checkpoint(saved, url, HUB, REPLACE)))
    push_checkpoint(other_saved, url, HUB, REPLACE)
    assert published_at(url) == again[0]


def test_a_push_whose_files_were_deleted_fails_and_keeps_the_old_checkpoint(
    saved: Path, other_saved: Path, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = push_checkpoint(saved, disk, HUB, PushOptions())
    fs, root = fsspec.core.url_to_fs(disk)

    def tidy_all() -> None:
        fs.invalidate_cache()
        for path in fs.ls(root, detail=False):
            if POINTER not in path and old.commit not in path:
                fs.rm(path, recursive=True)

    held_at("_lacking", monkeypatch, tidy_all)
    with pytest.raises(PMMRecError, match="did not arrive complete, or another push deleted it; push again"):
        push_checkpoint(other_saved, disk, HUB, REPLACE)
    assert published_at(disk) == old


def test_a_repeated_push_restores_missing_files(saved: Path, disk: str) -> None:
    origin = push_checkpoint(saved, disk, HUB, PushOptions())
    fs, root = fsspec.core.url_to_fs(disk)
    fs.rm_file(f"{root}/{origin.commit}/recipe.yaml")
    assert push_checkpoint(saved, disk, HUB, REPLACE) == origin
    assert published_at(disk) == origin


def test_files_of_killed_pushes_are_deleted_after_a_day(
    saved: Path, other_saved: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_checkpoint(saved, url, HUB, PushOptions())
    fs, root = fsspec.core.url_to_fs(url)
    left = {"1" * 64, f"{POINTER}.2"}
    fs.makedirs(f"{root}/{'1' * 64}", exist_ok=True)
    fs.pipe_file(f"{root}/{'1' * 64}/part.json", b"{}")
    fs.pipe_file(f"{root}/{POINTER}.2", b"{}")
    other = push_checkpoint(other_saved, url, HUB, REPLACE)
    assert names_at(url) == {POINTER, other.commit} | left
    monkeypatch.setattr(url_push, "ABANDONED_S", -2.0)  # the times of S3 are whole seconds
    origin = push_checkpoint(saved, url, HUB, REPLACE)
    assert names_at(url) == {POINTER, origin.commit}


def test_a_push_works_on_a_disk_without_hard_links(saved: Path, other_saved: Path, tmp_path: Path) -> None:
    url = f"file://{tmp_path}/stick/first"

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "link", refuse)
        origin = push_checkpoint(saved, url, HUB, PushOptions())
        with pytest.raises(RecipeError, match="exists already"):
            push_checkpoint(other_saved, url, HUB, PushOptions())
    assert published_at(url) == origin
    assert names_at(url) == {POINTER, origin.commit}


def test_in_a_store_without_exclusive_creation_the_later_push_wins(
    saved: Path, other_saved: Path, disk: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pointer is read directly before and after it is written; in between the store decides."""
    monkeypatch.setattr(UrlPush, "_create", lambda _: False)
    won: list[Origin] = []
    held_at("_create", monkeypatch, lambda: won.append(push_checkpoint(other_saved, disk, HUB, PushOptions())))
    later = push_checkpoint(saved, disk, HUB, PushOptions())
    assert len(won) == 1
    assert published_at(disk) == later


def test_a_client_that_finds_its_own_pointer_has_won(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "memory://asked-again/first"
    fs = fsspec.filesystem("memory")
    pipe = type(fs).pipe_file

    def twice(self: Any, path: str, value: bytes, **options: Any) -> None:
        pipe(self, path, value)
        if options.get("mode") == "create":
            raise FileExistsError(path)

    monkeypatch.setattr(type(fs), "pipe_file", twice)
    origin = push_checkpoint(saved, url, HUB, PushOptions())
    assert published_at(url) == origin
