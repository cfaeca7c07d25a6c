"""Where kept states may lie: who makes them, what gives way to them, what is told when there is no room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from kept_states import Ladder, read, tables, text_of

from pmmrec.contracts import Modality, PixelInputs, TokenInputs
from pmmrec.data import prefix as prefix_room
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.prefix import NoRoomError, PrefixConfig

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
        folder.rename(folder.with_name(f".{folder.name}.0{prefix_room.INCOMPLETE}"))
    ladder = Ladder()
    keep(shop, prefix=ladder)
    assert ladder.num_rows == 11


def test_a_table_that_fails_halfway_leaves_nothing(
    shop: Domain, open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    class Broken(Ladder):
        def states(self, inputs: TokenInputs | PixelInputs) -> torch.Tensor:
            return super().states(inputs)[:, :-1]

    with pytest.raises(IndexError):
        open_reader(shop).keep_states(Modality.TEXT, Broken(), PrefixConfig())
    assert [path.name for path in (tmp_path / "cache").iterdir() if "prefix" in path.name] == []


def test_what_killed_processes_left_is_swept_and_what_others_are_making_is_not(
    shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path
) -> None:
    left, others = (tmp_path / "cache" / f".prefix-{name}{prefix_room.INCOMPLETE}" for name in ("left", "others"))
    for folder in (left, others):
        folder.mkdir(parents=True)
        (folder / "states.bin").write_bytes(b"half")
    _aged(left, prefix_room.ABANDONED_S + 60)
    keep(shop)
    assert not left.exists()
    assert others.exists()


def test_the_tables_unused_for_longest_make_room_and_are_named(
    shop: Domain, keep: Callable[..., ItemReader], open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    keep(shop, prefix=Ladder("old"))
    old, older = tables(tmp_path / "cache")
    _aged(old, 10_000)
    _aged(older, 20_000)
    said: list[str] = []
    held = _sizes(tables(tmp_path / "cache"))
    config = PrefixConfig(budget_gb=(held + 20) / 1e9)
    reader = open_reader(shop)
    made = reader.keep_states(Modality.IMAGE, Ladder("new"), config, say=said.append)
    assert made.num_bytes > 20
    assert not older.exists()
    assert old.exists()
    assert len(said) == 1
    assert said[0].startswith(f"{older}: frozen states not used for 5.6 h")


def test_a_table_in_use_is_never_removed_and_the_budget_says_so(
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


def test_nothing_is_removed_where_that_would_not_be_enough(
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


def test_a_run_that_goes_on_keeps_its_table_young(
    shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_room, "MARK_EVERY_S", 0)
    reader = keep(shop)
    for folder in tables(tmp_path / "cache"):
        _aged(folder, 10_000)
    read(reader, [0, 0], [0, 1])
    assert all(time.time() - (folder / "index.json").stat().st_mtime < 60 for folder in tables(tmp_path / "cache"))


def test_a_disk_without_room_is_told_before_anything_is_written(
    shop: Domain, open_reader: Callable[..., ItemReader], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reader = open_reader(shop)
    monkeypatch.setattr(prefix_room, "SPARE_BYTES", 1 << 60)
    with pytest.raises(NoRoomError, match="free some, name another cache, or say prefix_cache=off"):
        reader.keep_states(Modality.TEXT, Ladder(), PrefixConfig())
    assert tables(tmp_path / "cache") == []


def test_a_disk_that_fills_up_is_told_before_a_signal_ends_the_run(
    shop: Domain, open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    resource = pytest.importorskip("resource")  # files may not grow beyond a few bytes: the system refuses to write
    reader, before = open_reader(shop), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(NoRoomError, match="frozen states cannot be kept there: File too large; name another cache"):
            reader.keep_states(Modality.TEXT, Ladder(), PrefixConfig())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list((tmp_path / "cache").glob("*prefix-*"))


def test_a_table_that_somebody_begins_to_use_in_time_stays(
    shop: Domain, keep: Callable[..., ItemReader], open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    keep(shop, prefix=Ladder("old"))
    held = tables(tmp_path / "cache")
    for place, folder in enumerate(held):
        _aged(folder, 10_000 * (1 + place))
    config = PrefixConfig(budget_gb=(_sizes(held) / 2) / 1e9)

    def wake_the_other(_line: str) -> None:
        os.utime(held[0] / "index.json")

    open_reader(shop).keep_states(Modality.IMAGE, Ladder("new"), config, say=wake_the_other)
    assert not held[1].exists()
    assert held[0].exists()


def test_a_table_that_vanishes_while_it_is_opened_is_made_again(
    shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = text_of(read(keep(shop), [0, 0], [0, 4])).state_R
    is_whole = prefix_room._is_whole

    def whole_and_gone(folder: Path) -> bool:
        found = is_whole(folder)
        monkeypatch.setattr(prefix_room, "_is_whole", is_whole)
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(prefix_room, "_is_whole", whole_and_gone)
    ladder = Ladder()
    assert torch.equal(text_of(read(keep(shop, prefix=ladder), [0, 0], [0, 4])).state_R, expected)
    assert ladder.num_rows > 0
    assert len(tables(tmp_path / "cache")) == 2


MAKE = """
import sys
from pathlib import Path
import numpy as np
from kept_states import Ladder, read, text_of
from pmmrec.contracts import Modality, PixelSpec
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.prefix import PrefixConfig
sys.path.insert(0, sys.argv[3])
from conftest import WordTokenizer
reader = ItemReader([Domain.open(Path(sys.argv[1]))], frozenset(Modality), WordTokenizer(), PixelSpec(8),
                    Path(sys.argv[2]), max_unreadable=1)
for modality in Modality:
    reader.keep_states(modality, Ladder(), PrefixConfig())
print(text_of(read(reader, [0] * 4, [0, 4, 6, 7])).state_R.tolist())
"""


def test_processes_that_start_at_once_make_one_whole_table_each(
    shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path
) -> None:
    here = Path(__file__).parent
    command = [sys.executable, "-c", MAKE, str(shop.folder), str(tmp_path / "cache"), str(here)]
    environment = {**os.environ, "PYTHONPATH": str(here.parents[1] / "support")}
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    expected = text_of(read(keep(shop), [0] * 4, [0, 4, 6, 7])).state_R.tolist()
    assert [line.strip() for line in said] == [str(expected)] * 2
    assert len(list((tmp_path / "cache").glob("*prefix-*"))) == 2  # texts and images; nothing half-made beside them
