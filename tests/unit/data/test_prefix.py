"""States of frozen blocks are computed once for each content, kept whole, and fetched as they were computed."""
# R rows, T tokens, H width of a state.

from __future__ import annotations

import os
import pickle
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pmmrec.contracts import Modality, PixelInputs, PixelSpec, PrefixInputs, PrefixSlots, TokenInputs
from pmmrec.data import items as items_module
from pmmrec.data import prefix as prefix_module
from pmmrec.data.batches import BatchBuilder, BatchLoader
from pmmrec.data.corruption import CorruptionConfig
from pmmrec.data.items import ItemReader
from pmmrec.data.mixing import MixingConfig
from pmmrec.data.prefix import NoRoomError, PrefixConfig
from pmmrec.data.split import Split
from pmmrec.data.windows import WindowConfig
from pmmrec.errors import MachineError

TEXT, IMAGE = frozenset({Modality.TEXT}), frozenset({Modality.IMAGE})
WIDTH = 3
FLOAT32 = PrefixConfig()
CPU = torch.device("cpu")


class Ramp:
    """A frozen part as small as can be: a token's state is its id and its place, an image's is its first pixels."""

    def __init__(self, name: str = "ramp") -> None:
        self.fingerprint = name
        self.num_rows = 0

    def states(self, inputs: TokenInputs | PixelInputs) -> Tensor:
        self.num_rows += len(inputs.item_index_R)
        if isinstance(inputs, PixelInputs):
            return inputs.pixels_RCHW[:, :, :2, :2].float() / 3
        place_RT = torch.arange(inputs.token_id_RT.shape[1]).expand_as(inputs.token_id_RT)
        return torch.stack((inputs.token_id_RT / 3, place_RT, torch.ones_like(place_RT)), dim=2).float()


@pytest.fixture
def shops(make_domain: Any) -> list[Any]:
    """Items 0 and 4 of the first domain are alike in both; item 2 has no text, items 0 to 2 of `second` no image."""
    texts = ["a", "a bb", None, "a bb ccc", "a"]
    first = make_domain([[0, 1, 2, 3, 4], [0, 1, 3, 4]], "first", texts=texts, images=[1, 2, 3])
    second = make_domain([[0, 1, 2, 0], [2, 1, 0, 2]], "second", texts=["dddd", "dddd dd", "a"], images=[])
    return [first, second]


@pytest.fixture
def text_reader(shops: list[Any], tokenizer: Any, tmp_path: Path) -> ItemReader:
    return ItemReader(shops, TEXT, tokenizer, None, tmp_path / "cache", max_unreadable=0.5)


@pytest.fixture
def image_reader(shops: list[Any], tmp_path: Path) -> ItemReader:
    return ItemReader(shops[:1], IMAGE, None, PixelSpec(8), tmp_path / "cache", max_unreadable=0.5)


def folders(cache: Path) -> list[Path]:
    return sorted(cache.glob("prefix-*"))


def fetched(reader: ItemReader, domain_U: list[int], row_U: list[int]) -> Any:
    items = reader.read(np.array(domain_U), np.array(row_U))
    assert isinstance(items.text or items.image, PrefixSlots)
    return reader.to_device(items, CPU)


def computed(reader: ItemReader, domain_U: list[int], row_U: list[int]) -> PrefixInputs:
    """The naive twin: read the items themselves and send them through the frozen part."""
    items = reader.read(np.array(domain_U), np.array(row_U))
    inputs = items.text or items.image
    states = Ramp().states(inputs)
    if isinstance(inputs, PixelInputs):
        return PrefixInputs(states, torch.zeros(len(states), 0, dtype=torch.bool), inputs.item_index_R)
    states = torch.where(inputs.is_valid_RT[:, :, None], states, 0.0)
    return PrefixInputs(states, inputs.is_valid_RT, inputs.item_index_R)


def assert_same(found: PrefixInputs, expected: PrefixInputs) -> None:
    assert torch.equal(found.state_R, expected.state_R)
    assert torch.equal(found.is_valid_RT, expected.is_valid_RT)
    assert torch.equal(found.item_index_R, expected.item_index_R)


@pytest.mark.parametrize("rows", [[0, 1, 3], [4, 2, 0, 1], [3]])
def test_states_are_those_of_the_items_asked_for(text_reader: ItemReader, rows: list[int]) -> None:
    expected = computed(text_reader, [0] * len(rows), rows)
    text_reader.keep_states(Modality.TEXT, Ramp(), FLOAT32)
    assert_same(fetched(text_reader, [0] * len(rows), rows).text, expected)


def test_states_of_several_domains_keep_their_order(text_reader: ItemReader) -> None:
    places = ([1, 0, 1, 0, 1], [0, 3, 2, 1, 1])
    expected = computed(text_reader, *places)
    text_reader.keep_states(Modality.TEXT, Ramp(), FLOAT32)
    assert_same(fetched(text_reader, *places).text, expected)


def test_states_of_images_have_one_shape_and_no_padding(image_reader: ItemReader) -> None:
    expected = computed(image_reader, [0, 0, 0], [3, 0, 1])
    image_reader.keep_states(Modality.IMAGE, Ramp(), FLOAT32)
    found = fetched(image_reader, [0, 0, 0], [3, 0, 1]).image
    assert found.state_R.shape == (2, 3, 2, 2)  # item 0 has no image
    assert_same(found, expected)


def test_zeros_stand_in_where_no_item_has_the_modality(text_reader: ItemReader, image_reader: ItemReader) -> None:
    for reader, modality in ((text_reader, Modality.TEXT), (image_reader, Modality.IMAGE)):
        reader.keep_states(modality, Ramp(), FLOAT32)
    text = fetched(text_reader, [0], [2]).text
    image = fetched(image_reader, [0], [0]).image
    assert not text.state_R.any()
    assert not image.state_R.any()
    assert image.state_R.shape == (1, 3, 2, 2)
    assert text.is_valid_RT.any()  # attention over no token at all would not be a number
    assert (text.item_index_R.tolist(), image.item_index_R.tolist()) == ([0], [0])


def test_a_domain_without_the_modality_has_no_table(shops: list[Any], tmp_path: Path) -> None:
    reader = ItemReader([shops[0]], IMAGE, None, PixelSpec(8), tmp_path / "cache", max_unreadable=0.5)
    prefix = Ramp()
    reader.keep_states(Modality.IMAGE, prefix, FLOAT32)
    assert prefix.num_rows == 3
    assert len(folders(tmp_path / "cache")) == 1


def test_each_content_is_computed_once_and_padding_is_not_stored(text_reader: ItemReader, tmp_path: Path) -> None:
    prefix = Ramp()
    tables = text_reader.keep_states(Modality.TEXT, prefix, FLOAT32)
    assert prefix.num_rows == 3 + 3  # of the first domain's five items one has no text and two are alike
    num_tokens = (2 + 3 + 4) + (2 + 3 + 2)
    assert tables.num_bytes == num_tokens * WIDTH * 4
    assert sum((folder / "states.bin").stat().st_size for folder in folders(tmp_path / "cache")) == tables.num_bytes


def test_bfloat16_keeps_the_nearest_states_in_half_the_space(text_reader: ItemReader) -> None:
    expected = computed(text_reader, [0, 0], [3, 1])
    tables = text_reader.keep_states(Modality.TEXT, Ramp(), PrefixConfig(precision="bfloat16"))
    found = fetched(text_reader, [0, 0], [3, 1]).text
    assert torch.equal(found.state_R, expected.state_R.bfloat16().float())
    assert not torch.equal(found.state_R, expected.state_R)
    assert tables.num_bytes == 16 * WIDTH * 2


def test_a_second_run_computes_nothing(text_reader: ItemReader, tmp_path: Path) -> None:
    text_reader.keep_states(Modality.TEXT, Ramp(), FLOAT32)
    before = folders(tmp_path / "cache")
    again = Ramp()
    text_reader.keep_states(Modality.TEXT, again, FLOAT32)
    assert (again.num_rows, folders(tmp_path / "cache")) == (0, before)


def test_other_weights_tokens_texts_and_precisions_have_other_tables(
    make_domain: Any, tokenizer_class: Any, tmp_path: Path
) -> None:
    def keep(name: str, texts: list[str], max_tokens: int, fingerprint: str, config: PrefixConfig) -> None:
        domain = make_domain([[0, 1, 0]], name, texts=texts)
        reader = ItemReader([domain], TEXT, tokenizer_class(max_tokens), None, tmp_path / "cache")
        reader.keep_states(Modality.TEXT, Ramp(fingerprint), config)

    given = ["a bb ccc", "a bb"]
    keep("one", given, 8, "ramp", FLOAT32)
    keep("same", given, 8, "ramp", FLOAT32)
    assert len(folders(tmp_path / "cache")) == 1  # what is read counts, not the domain it stands in
    keep("weights", given, 8, "other", FLOAT32)
    keep("tokens", given, 3, "ramp", FLOAT32)
    keep("texts", ["a bb cccc", "a bb"], 8, "ramp", FLOAT32)
    keep("precision", given, 8, "ramp", PrefixConfig(precision="bfloat16"))
    assert len(folders(tmp_path / "cache")) == 5


def test_other_pictures_and_sizes_have_other_tables(make_domain: Any, tmp_path: Path) -> None:
    def keep(name: str, images: list[int], size: int) -> None:
        domain = make_domain([[0, 1, 2, 3]], name, images=images)
        reader = ItemReader([domain], IMAGE, None, PixelSpec(size), tmp_path / "cache", max_unreadable=0.9)
        reader.keep_states(Modality.IMAGE, Ramp(), FLOAT32)

    keep("one", [1, 2], 8)
    keep("same", [1, 2], 8)
    assert len(folders(tmp_path / "cache")) == 1
    keep("pictures", [1, 3], 8)
    keep("size", [1, 2], 16)
    assert len(folders(tmp_path / "cache")) == 3


@pytest.mark.parametrize("damage", ["shorter", "flipped", "index", "ends"])
def test_a_damaged_table_is_made_again(text_reader: ItemReader, tmp_path: Path, damage: str) -> None:
    expected = computed(text_reader, [0], [3])
    text_reader.keep_states(Modality.TEXT, Ramp(), FLOAT32)
    for folder in folders(tmp_path / "cache"):
        name = {"index": "index.json", "ends": "ends.npy"}.get(damage, "states.bin")
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 0x40
        (folder / name).write_bytes(content[:-7] if damage in ("shorter", "index") else content)
    again = Ramp()
    text_reader.keep_states(Modality.TEXT, again, FLOAT32)
    assert again.num_rows == 6
    assert_same(fetched(text_reader, [0], [3]).text, expected)
    assert len(list((tmp_path / "cache").glob("*prefix-*"))) == 2  # the broken ones are gone


def test_slots_travel_and_states_do_not(text_reader: ItemReader) -> None:
    text_reader.keep_states(Modality.TEXT, Ramp(), FLOAT32)
    items = text_reader.read(np.zeros(2, dtype=np.int64), np.array([3, 1]))
    assert isinstance(items.text, PrefixSlots)
    assert items.text.slot_R.shape == (2,)


def test_a_reader_that_travelled_to_another_process_fetches_the_same(text_reader: ItemReader) -> None:
    text_reader.keep_states(Modality.TEXT, Ramp(), FLOAT32)
    travelled = pickle.loads(pickle.dumps(text_reader))  # noqa: S301  what a spawned worker does with it
    assert_same(fetched(travelled, [0, 1], [3, 1]).text, fetched(text_reader, [0, 1], [3, 1]).text)


def test_worker_processes_give_the_same_batches(shops: list[Any], text_reader: ItemReader) -> None:
    text_reader.keep_states(Modality.TEXT, Ramp(), FLOAT32)
    rules = (WindowConfig(size=4), MixingConfig(), CorruptionConfig())
    splits = [Split(shop) for shop in shops]
    builder = BatchBuilder(shops, splits, text_reader, *rules, batch_users=2, seed=1, views=frozenset())
    alone, helped = ([*BatchLoader(builder, workers).epoch(0)] for workers in (0, 2))
    assert len(alone) == len(helped) > 0
    for one, other in zip(alone, helped, strict=True):
        assert_same(text_reader.to_device(one.items, CPU).text, text_reader.to_device(other.items, CPU).text)


def aged(folder: Path, hours: float) -> Path:
    then = time.time() - 3600 * hours
    os.utime(folder / "index.json", (then, then))
    return folder


def made(reader: ItemReader, cache: Path, name: str) -> Path:
    """One more table of 144 bytes of states, and its folder."""
    before = set(folders(cache))
    reader.keep_states(Modality.IMAGE, Ramp(name), FLOAT32)
    return (set(folders(cache)) - before).pop()


def budget_for(folder: Path, tables: float) -> PrefixConfig:
    return PrefixConfig(budget_gb=tables * sum(file.stat().st_size for file in folder.iterdir()) / 1e9)


def test_the_table_unused_for_longest_makes_room_and_is_named(image_reader: ItemReader, tmp_path: Path) -> None:
    cache, said = tmp_path / "cache", list[str]()
    newer = aged(made(image_reader, cache, "newer"), hours=2)
    oldest = aged(made(image_reader, cache, "oldest"), hours=30)
    fresh = made(image_reader, cache, "fresh")
    image_reader.keep_states(Modality.IMAGE, Ramp("next"), budget_for(fresh, 3.1), None, said.append)
    assert (oldest.exists(), newer.exists(), fresh.exists()) == (False, True, True)
    assert said == [f"{oldest}: frozen states not used for 30.0 h make room for others"]


def test_a_table_used_within_the_hour_is_never_removed(image_reader: ItemReader, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    lately = aged(made(image_reader, cache, "lately"), hours=0.9)
    old = aged(made(image_reader, cache, "old"), hours=3)
    with pytest.raises(NoRoomError, match=r"need 144 bytes beside \d+ of tables in use; prefix_budget_gb allows"):
        image_reader.keep_states(Modality.IMAGE, Ramp("next"), budget_for(lately, 1.1))
    assert lately.exists()
    assert old.exists()  # it would not have been enough, so it was not touched


def test_opening_a_table_counts_as_use(image_reader: ItemReader, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    used = aged(made(image_reader, cache, "used"), hours=30)
    image_reader.keep_states(Modality.IMAGE, Ramp("used"), FLOAT32)
    aged(made(image_reader, cache, "other"), hours=2)
    image_reader.keep_states(Modality.IMAGE, Ramp("next"), budget_for(used, 2.5))
    assert used.exists()


def test_reading_a_table_counts_as_use(
    image_reader: ItemReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_module, "MARK_EVERY_S", 0)
    used = aged(made(image_reader, tmp_path / "cache", "used"), hours=30)
    fetched(image_reader, [0], [1])
    assert time.time() - (used / "index.json").stat().st_mtime < 60


def test_a_disk_without_room_is_told_in_bytes_and_keeps_its_old_tables(
    image_reader: ItemReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = aged(made(image_reader, tmp_path / "cache", "old"), hours=30)
    usage = shutil.disk_usage(tmp_path)._replace(free=5000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(MachineError, match=r"need 144 bytes and 100,000,000 to spare; [56],\d{3} can be had"):
        image_reader.keep_states(Modality.IMAGE, Ramp("next"), FLOAT32)
    assert folders(tmp_path / "cache") == [old]
    assert fetched(image_reader, [0], [1]).image.state_R.any()  # what was kept before is still read


def test_a_table_that_was_not_finished_leaves_nothing(
    image_reader: ItemReader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(Ramp):
        def states(self, inputs: TokenInputs | PixelInputs) -> Tensor:
            if self.num_rows:
                raise KeyboardInterrupt
            return super().states(inputs)

    monkeypatch.setattr(items_module, "STATES_AT_ONCE", 1)
    with pytest.raises(KeyboardInterrupt):
        image_reader.keep_states(Modality.IMAGE, Stopped(), FLOAT32)
    assert not list((tmp_path / "cache").glob("*prefix-*"))


def test_what_a_killed_process_left_is_swept_after_a_day(image_reader: ItemReader, tmp_path: Path) -> None:
    left = [tmp_path / "cache" / f".prefix-{name}.incomplete" for name in ("old", "new")]
    for folder in left:
        folder.mkdir(parents=True)
    os.utime(left[0], (time.time() - 100_000,) * 2)
    image_reader.keep_states(Modality.IMAGE, Ramp(), FLOAT32)
    assert [folder.exists() for folder in left] == [False, True]


def test_a_faster_process_with_the_same_states_wins(image_reader: ItemReader, tmp_path: Path) -> None:
    class Overtaken(Ramp):
        def states(self, inputs: TokenInputs | PixelInputs) -> Tensor:
            if not self.num_rows:
                self.num_rows = 1
                image_reader.keep_states(Modality.IMAGE, Ramp(), FLOAT32)
            return super().states(inputs)

    image_reader.keep_states(Modality.IMAGE, Overtaken(), FLOAT32)
    assert len(list((tmp_path / "cache").glob("*prefix-*"))) == 1
