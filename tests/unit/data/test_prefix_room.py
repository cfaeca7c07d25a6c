"""Kept states stay within the budget and the disk: old tables are removed, and a lack of room is an error."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kept_states import Ladder, Network, read, tables, text_of

from pmmrec.contracts import Modality, PixelInputs, TextSpec, TokenInputs
from pmmrec.data import cache as content_cache
from pmmrec.data import prefix, prefix_room
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.prefix import PrefixConfig
from pmmrec.data.prefix_room import NoRoomError

MakeDomain = Callable[..., Domain]


def _aged(folder: Path, age_s: float) -> Path:
    """Last used so long ago."""
    then = time.time() - age_s
    for path in (*folder.iterdir(), folder):
        os.utime(path, (then, then))
    return folder


def _sizes(folders: list[Path]) -> int:
    return sum(file.stat().st_size for folder in folders for file in folder.iterdir())


def test_a_half_made_folder_is_never_used(shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path) -> None:
    keep(shop)
    for folder in tables(tmp_path / "cache"):
        folder.rename(folder.with_name(f".{folder.name}.0{content_cache.INCOMPLETE}"))
    ladder = Ladder()
    keep(shop, prefix=ladder)
    assert ladder.num_rows == 11


def test_a_table_that_fails_halfway_leaves_nothing(
    shop: Domain, open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    class Broken(Ladder):
        def states(self, inputs: TokenInputs | PixelInputs) -> torch.Tensor:
            return super().states(inputs)[:-1]

    with pytest.raises(RuntimeError, match="shape mismatch"):
        open_reader(shop).keep_states(Modality.TEXT, Broken(), PrefixConfig())
    assert [path.name for path in (tmp_path / "cache").iterdir() if "prefix" in path.name] == []


def test_tables_of_killed_processes_are_removed_and_those_being_made_are_not(
    shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path
) -> None:
    left, others = (tmp_path / "cache" / f".prefix-{name}{content_cache.INCOMPLETE}" for name in ("left", "others"))
    for folder in (left, others):
        folder.mkdir(parents=True)
        (folder / "states.bin").write_bytes(b"half")
    _aged(left, content_cache.ABANDONED_S + 60)
    keep(shop)
    assert not left.exists()
    assert others.exists()


def test_two_that_make_tables_at_once_share_one_budget(
    shop: Domain, open_reader: Callable[..., ItemReader], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    num_bytes = open_reader(shop).keep_states(Modality.IMAGE, Ladder("size"), PrefixConfig()).num_bytes
    shutil.rmtree(tables(tmp_path / "cache")[0])
    config, reserve, refused = PrefixConfig(budget_gb=1.5 * num_bytes / 1e9), prefix._reserve, list[str]()

    def let_another_begin(*before: Any) -> None:
        monkeypatch.setattr(prefix, "_reserve", reserve)
        with pytest.raises(NoRoomError, match=rf"need {num_bytes} bytes beside {num_bytes} of tables in use") as raised:
            open_reader(shop).keep_states(Modality.IMAGE, Ladder("second"), config)
        refused.append(str(raised.value))
        reserve(*before)

    monkeypatch.setattr(prefix, "_reserve", let_another_begin)  # not a byte of the first is written then
    open_reader(shop).keep_states(Modality.IMAGE, Ladder("first"), config)
    assert len(refused) == 1
    assert len(list((tmp_path / "cache").glob("*prefix-*"))) == 1


def test_abandoned_unfinished_tables_do_not_count_against_the_budget(
    shop: Domain, open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    left = tmp_path / "cache" / f".prefix-left.0{content_cache.INCOMPLETE}"
    left.mkdir(parents=True)
    (left / "states.bin").write_bytes(bytes(1000))
    config = PrefixConfig(budget_gb=1000 / 1e9)
    with pytest.raises(NoRoomError, match="beside 1,000 of tables in use"):
        open_reader(shop).keep_states(Modality.IMAGE, Ladder(), config)
    _aged(left, prefix_room.IN_USE_S + 60)
    open_reader(shop).keep_states(Modality.IMAGE, Ladder(), config)


def test_the_least_recently_used_tables_are_removed_and_named(
    shop: Domain, keep: Callable[..., ItemReader], open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    keep(shop, prefix=Ladder("old"))
    old, older = tables(tmp_path / "cache")
    _aged(old, 10_000)
    _aged(older, 20_000)
    said: list[str] = []
    held = _sizes(tables(tmp_path / "cache"))
    config = PrefixConfig(budget_gb=(held + 20) / 1e9)
    made = open_reader(shop, say=said.append).keep_states(Modality.IMAGE, Ladder("new"), config)
    assert made.num_bytes > 20
    assert not older.exists()
    assert old.exists()
    assert len(said) == 1
    assert said[0].startswith(f"{older}: frozen states not used for 5.6 h")


def test_a_table_in_use_is_never_removed_and_the_error_names_the_budget(
    shop: Domain, keep: Callable[..., ItemReader], open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    keep(shop)
    held = tables(tmp_path / "cache")
    for folder in held:
        _aged(folder, prefix_room.IN_USE_S - 60)
    config = PrefixConfig(budget_gb=(_sizes(held) + 20) / 1e9)
    with pytest.raises(NoRoomError, match=r"prefix_budget_gb allows .*: raise it, or say prefix_cache=off") as raised:
        open_reader(shop).keep_states(Modality.IMAGE, Ladder("new"), config)
    assert raised.value.exit_code == 4
    assert tables(tmp_path / "cache") == held


def test_nothing_is_removed_where_it_would_not_make_enough_room(
    shop: Domain, keep: Callable[..., ItemReader], open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    keep(shop)
    young, old = tables(tmp_path / "cache")
    _aged(old, 10_000)
    config = PrefixConfig(budget_gb=(_sizes([young]) + 20) / 1e9)
    with pytest.raises(NoRoomError, match=rf"need \d+ bytes beside {_sizes([young])} of tables in use"):
        open_reader(shop).keep_states(Modality.IMAGE, Ladder("new"), config)
    assert old.exists()


def test_opening_a_table_counts_as_use(shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path) -> None:
    keep(shop)
    for folder in tables(tmp_path / "cache"):
        _aged(folder, 10_000)
    keep(shop)
    assert all(time.time() - (folder / "index.json").stat().st_mtime < 60 for folder in tables(tmp_path / "cache"))


def test_a_long_run_marks_its_table_as_used(
    shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix, "MARK_EVERY_S", 0)
    reader = keep(shop)
    for folder in tables(tmp_path / "cache"):
        _aged(folder, 10_000)
    read(reader, [0, 0], [0, 1])
    assert all(time.time() - (folder / "index.json").stat().st_mtime < 60 for folder in tables(tmp_path / "cache"))


def test_a_full_disk_is_an_error_before_anything_is_written(
    shop: Domain, open_reader: Callable[..., ItemReader], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reader = open_reader(shop)
    monkeypatch.setattr(prefix_room, "SPARE_BYTES", 1 << 60)
    with pytest.raises(NoRoomError, match=r"free some, name another cache \(--cache .*\), or say prefix_cache=off"):
        reader.keep_states(Modality.TEXT, Ladder(), PrefixConfig())
    assert tables(tmp_path / "cache") == []


def test_a_disk_that_fills_up_is_an_error_and_not_a_signal(
    shop: Domain, open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")  # files may not grow beyond a few bytes: the system refuses to write
    reader, before = open_reader(shop), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(
            NoRoomError, match="frozen states cannot be kept there: File too large; free space or name another cache"
        ):
            reader.keep_states(Modality.TEXT, Ladder(), PrefixConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "cache").glob("*prefix-*"))


def test_a_table_that_comes_into_use_meanwhile_is_not_removed(
    shop: Domain, keep: Callable[..., ItemReader], open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    keep(shop, prefix=Ladder("old"))
    held = tables(tmp_path / "cache")
    for place, folder in enumerate(held):
        _aged(folder, 10_000 * (1 + place))
    config = PrefixConfig(budget_gb=(_sizes(held) / 2) / 1e9)

    def wake_the_other(_line: str) -> None:
        os.utime(held[0] / "index.json")

    open_reader(shop, say=wake_the_other).keep_states(Modality.IMAGE, Ladder("new"), config)
    assert not held[1].exists()
    assert held[0].exists()


OnCheck = Callable[[Path, bool], None]


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[OnCheck], None]:
    """Let others act between the check of a table and its opening; what they open themselves they do alone."""

    def let(act: OnCheck) -> None:
        is_whole, acting = content_cache.is_whole, [False]

        def check(folder: Path) -> bool:
            found = is_whole(folder)
            if folder.name.startswith("prefix-") and not acting[0]:
                acting[0] = True
                act(folder, found)
                acting[0] = False
            return found

        monkeypatch.setattr(content_cache, "is_whole", check)

    return let


def test_a_table_that_is_being_opened_is_not_removed_for_another(
    shop: Domain,
    keep: Callable[..., ItemReader],
    open_reader: Callable[..., ItemReader],
    meanwhile: Callable[..., None],
) -> None:
    made = open_reader(shop).keep_states(Modality.TEXT, Ladder(), PrefixConfig())._tables[0]
    _aged(made.folder, 10_000)
    refused: list[str] = []

    def ask_for_its_room(folder: Path, found: bool) -> None:
        assert found
        with pytest.raises(NoRoomError, match="of tables in use") as raised:
            open_reader(shop).keep_states(
                Modality.TEXT, Ladder("other"), PrefixConfig(budget_gb=_sizes([folder]) / 1e9)
            )
        refused.append(str(raised.value))

    meanwhile(ask_for_its_room)
    ladder = Ladder()
    open_reader(shop).keep_states(Modality.TEXT, ladder, PrefixConfig())
    assert len(refused) == 1
    assert ladder.num_rows == 0


def test_a_table_that_is_removed_for_another_while_it_is_opened_is_made_again(
    shop: Domain, open_reader: Callable[..., ItemReader], meanwhile: Callable[..., None], tmp_path: Path
) -> None:
    reader = open_reader(shop)
    reader.keep_states(Modality.TEXT, Ladder(), PrefixConfig())
    expected = text_of(read(reader, [0, 0], [0, 4])).state
    removed: list[str] = []

    def take_its_room(folder: Path, found: bool) -> None:
        if found:
            config = PrefixConfig(budget_gb=_sizes([_aged(folder, 10_000)]) / 1e9)
            open_reader(shop, say=removed.append).keep_states(Modality.TEXT, Ladder("other"), config)

    meanwhile(take_its_room)
    reader, ladder = open_reader(shop), Ladder()
    reader.keep_states(Modality.TEXT, ladder, PrefixConfig())
    assert len(removed) == 1
    assert ladder.num_rows == 6
    assert torch.equal(text_of(read(reader, [0, 0], [0, 4])).state, expected)
    assert len(list((tmp_path / "cache").glob("*prefix-*"))) == 2


@pytest.mark.parametrize("first", ["layout.json", "ends.npy", "states.bin"])
def test_whichever_file_of_a_table_vanishes_while_it_is_opened_it_is_made_again(
    shop: Domain, open_reader: Callable[..., ItemReader], meanwhile: Callable[..., None], tmp_path: Path, first: str
) -> None:
    open_reader(shop).keep_states(Modality.TEXT, Ladder(), PrefixConfig())
    meanwhile(lambda folder, found: (folder / first).unlink() if found else None)
    reader, ladder = open_reader(shop), Ladder()
    reader.keep_states(Modality.TEXT, ladder, PrefixConfig())
    assert ladder.num_rows == 6
    assert text_of(read(reader, [0], [6])).state.all()
    assert len(list((tmp_path / "cache").glob("*prefix-*"))) == 1


def test_a_table_larger_than_the_memory_is_opened(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    num_rows, width = 4 * memory // 4096, 1024
    (tmp_path / "states.bin").touch()
    os.truncate(tmp_path / "states.bin", 4 * num_rows * width)  # takes no room: nothing is written
    layout = {"dtype": "float32", "shape": [num_rows, width], "is_ragged": False}
    (tmp_path / "layout.json").write_text(json.dumps(layout))
    np.save(tmp_path / "ends.npy", np.array([1, num_rows]))
    state_RH = prefix.PrefixTable(tmp_path).fetch(np.array([0, 1]))
    assert torch.equal(state_RH, torch.zeros(2, width))


def test_of_two_processes_that_want_the_same_table_one_makes_it_and_the_other_waits(
    make_domain: MakeDomain, tokenizer_class: type, tmp_path: Path
) -> None:
    cache, forked = tmp_path / "cache", multiprocessing.get_context("fork")
    texts = [" ".join(["w" * (1 + row % 25), "w" * (1 + row // 25), *["v"] * (row % 5)]) for row in range(600)]
    domain = make_domain([list(range(600))], texts=texts)
    meeting, told = forked.Barrier(2), forked.SimpleQueue()

    def make() -> None:
        network = Network()
        meeting.wait()
        state_RH = state_of(network)
        told.put([network.num_rows, hashlib.sha256(state_RH.numpy().tobytes()).hexdigest()])

    def state_of(network: Network | None) -> torch.Tensor:
        reader = ItemReader([domain], {"text": TextSpec(tokenizer_class())}, cache)
        if network is None:
            items = reader.read(np.zeros(600, dtype=np.int64), np.arange(600))
            text = items.fields["text"]
            assert isinstance(text, TokenInputs)
            return Network().states(text)
        reader.keep_states(Modality.TEXT, network, PrefixConfig())
        return text_of(read(reader, [0] * 600, list(range(600)))).state

    started = [forked.Process(target=make) for _ in range(2)]
    for process in started:
        process.start()
    said = sorted(told.get() for _ in started)
    for process in started:
        process.join()
    assert [path.name for path in cache.glob("*prefix-*")] == [tables(cache)[0].name]  # and nothing unfinished
    late = Network()
    found = state_of(late)
    assert late.num_rows == 0
    torch.testing.assert_close(found, state_of(None), rtol=0, atol=1e-6)
    digest = hashlib.sha256(found.numpy().tobytes()).hexdigest()
    assert said == [[0, digest], [600, digest]]
