"""An entry of the cache is made once, complete or not at all, by one process while others wait."""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from pmmrec.data import cache as content_cache
from pmmrec.data.cache import CacheEntry, ContentCache
from pmmrec.errors import DataError, MachineError

TEXT = "made"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def entry(tmp_path: Path, said: list[str]) -> CacheEntry:
    return ContentCache(tmp_path / "cache", said.append).entry("letters", "letters", {"of": "x"})


class Maker:
    """Writes two files, and counts how often."""

    def __init__(self, text: str = TEXT) -> None:
        self.text, self.num_made = text, 0

    def __call__(self, folder: Path) -> None:
        self.num_made += 1
        (folder / "first").write_text(self.text)
        (folder / "second").write_text(self.text)


def read(folder: Path) -> str:
    return (folder / "first").read_text() + (folder / "second").read_text()


def names(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir())


def test_an_entry_is_made_once(entry: CacheEntry, said: list[str]) -> None:
    make = Maker()
    assert [entry.open(make, read) for _ in range(3)] == [2 * TEXT] * 3
    assert make.num_made == 1
    assert names(entry.folder.parent) == [entry.folder.name]
    assert said == []


def test_other_inputs_or_another_kind_are_other_entries(tmp_path: Path) -> None:
    cache = ContentCache(tmp_path)
    asked = [("a", {"of": "x"}), ("a", {"of": "y"}), ("a", {"on": "x"}), ("b", {"of": "x"}), ("a", {})]
    assert len({cache.entry(kind, "letters", inputs).folder for kind, inputs in asked}) == len(asked)
    assert cache.entry("a", "x", {"p": 1, "q": 2}).folder == cache.entry("a", "x", {"q": 2, "p": 1}).folder


def test_a_change_of_the_layout_makes_other_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ContentCache(tmp_path).entry("a", "letters", {}).folder
    monkeypatch.setattr(content_cache, "FORMAT", content_cache.FORMAT + 1)
    assert ContentCache(tmp_path).entry("a", "letters", {}).folder != before


def _cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _change(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _hold_something_else(path: Path) -> None:
    path.write_text('{"files": {}}')


@pytest.mark.parametrize("name", ["first", "second", "index.json"])
@pytest.mark.parametrize("harm", [_cut_short, _change, _empty, _hold_something_else, Path.unlink])
def test_a_damaged_entry_is_made_again_and_that_is_said_once(
    entry: CacheEntry, said: list[str], name: str, harm: Callable[[Path], None]
) -> None:
    make = Maker()
    entry.open(make, read)
    harm(entry.folder / name)
    assert [entry.open(make, read) for _ in range(2)] == [2 * TEXT] * 2
    assert make.num_made == 2
    assert said == [f"{entry.folder}: was damaged; letters are made again"]
    assert names(entry.folder.parent) == [entry.folder.name]


def test_large_files_are_checked_by_their_size_alone(entry: CacheEntry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_cache, "MAX_VERIFIED_BYTES", len(TEXT) - 1)
    make = Maker()
    entry.open(make, read)
    (entry.folder / "first").write_text("MADE")
    assert entry.open(make, read) == "MADE" + TEXT
    (entry.folder / "first").write_text("MAD")
    assert entry.open(make, read) == 2 * TEXT
    assert make.num_made == 2


@pytest.mark.parametrize("error", [DataError, KeyboardInterrupt])
def test_an_entry_that_fails_halfway_leaves_nothing(entry: CacheEntry, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "first").write_text(TEXT)
        raise error

    with pytest.raises(error):
        entry.open(fail, read)
    assert names(entry.folder.parent) == []


def test_others_wait_while_one_makes_an_entry(entry: CacheEntry, said: list[str]) -> None:
    entered, go_on, found = threading.Event(), threading.Event(), list[str]()

    def slow(folder: Path) -> None:
        entered.set()
        assert go_on.wait(60)
        Maker()(folder)

    other = Maker("never made")
    threads = [threading.Thread(target=lambda: found.append(entry.open(slow, read)))]
    threads += [threading.Thread(target=lambda: found.append(entry.open(other, read))) for _ in range(2)]
    threads[0].start()
    assert entered.wait(60)
    for thread in threads[1:]:
        thread.start()
    while len(said) < 2:
        time.sleep(0.01)
    go_on.set()
    for thread in threads:
        thread.join()
    assert found == [2 * TEXT] * 3
    assert other.num_made == 0
    assert set(said) == {f"{entry.folder}: waiting for letters, which another process is making"}
    assert names(entry.folder.parent) == [entry.folder.name]


def test_what_a_killed_process_left_is_removed_when_the_entry_is_made(entry: CacheEntry) -> None:
    entry.folder.parent.mkdir()
    left, others = (entry.folder.with_name(f".{name}.0.incomplete") for name in (entry.folder.name, "other-0"))
    for folder in (left, others):
        folder.mkdir()
        Maker()(folder)
    entry.folder.with_name(f".{entry.folder.name}.lock").touch()  # killed processes leave it, but hold it no longer
    entry.open(Maker(), read)
    assert names(entry.folder.parent) == [others.name, entry.folder.name]


def test_what_killed_processes_left_of_other_entries_is_removed_after_a_day(entry: CacheEntry) -> None:
    entry.folder.parent.mkdir()
    old, young = (entry.folder.with_name(f".{name}.0.incomplete") for name in ("old-0", "young-0"))
    for folder, age_s in ((old, content_cache.ABANDONED_S + 60), (young, content_cache.ABANDONED_S - 60)):
        folder.mkdir()
        os.utime(folder, (time.time() - age_s,) * 2)
    entry.open(Maker(), read)
    assert names(entry.folder.parent) == [young.name, entry.folder.name]


def test_without_locks_a_faster_process_with_the_same_content_wins(
    entry: CacheEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", refuse)
    faster = Maker()

    def overtaken(folder: Path) -> None:
        entry.open(faster, read)
        Maker()(folder)

    assert entry.open(overtaken, read) == 2 * TEXT
    assert faster.num_made == 1
    assert names(entry.folder.parent) == [entry.folder.name]


def test_an_entry_that_vanishes_while_it_is_read_is_made_again(entry: CacheEntry) -> None:
    make, times = Maker(), [0]

    def read_late(folder: Path) -> str:
        times[0] += 1
        if times[0] == 1:
            shutil.rmtree(folder)
        return read(folder)

    assert entry.open(make, read_late) == 2 * TEXT
    assert make.num_made == 2


def test_an_entry_that_others_remove_as_fast_as_it_is_made_is_given_up(entry: CacheEntry) -> None:
    def read_late(folder: Path) -> str:
        shutil.rmtree(folder)
        return read(folder)

    make = Maker()
    with pytest.raises(MachineError, match="other processes removed letters 3 times while they were opened; raise"):
        entry.open(make, read_late)
    assert make.num_made == 3


def test_an_entry_that_may_not_be_made_is_read_or_missed(entry: CacheEntry) -> None:
    with pytest.raises(MachineError, match="no letters are kept there, and none are made now"):
        entry.open(None, read)
    assert not entry.folder.parent.exists()
    entry.open(Maker(), read)
    assert entry.open(None, read) == 2 * TEXT


def test_a_cache_that_cannot_be_written_says_how_to_name_another(tmp_path: Path) -> None:
    class OwnError(MachineError):
        pass

    (tmp_path / "file").touch()
    entry = ContentCache(tmp_path / "file").entry("letters", "letters", {}, OwnError)
    with pytest.raises(
        OwnError, match=r"file: letters cannot be kept there: .*; free space or name another cache \(--"
    ):
        entry.open(Maker(), read)


def test_opening_an_entry_counts_as_use(entry: CacheEntry) -> None:
    entry.open(Maker(), read)
    os.utime(entry.folder / "index.json", (0, 0))
    entry.open(Maker(), read)
    assert time.time() - (entry.folder / "index.json").stat().st_mtime < 60


def test_pieces_are_made_and_opened_alone(entry: CacheEntry) -> None:
    makers = [Maker(text) for text in ("zero", "one")]
    found = [entry.piece(number).open(makers[number], read) for number in (1, 0, 1)]
    assert found == ["oneone", "zerozero", "oneone"]
    assert [maker.num_made for maker in makers] == [1, 1]
    assert names(entry.folder) == ["000000", "000001"]
