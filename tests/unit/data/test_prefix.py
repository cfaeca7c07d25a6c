"""Kept states: computed once, shared by runs, rebuilt when broken, fetched as the batch wants them."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pmmrec.contracts import ItemInputs, Modality, PixelInputs, PixelSpec, PrefixInputs, PrefixSlots, TokenInputs
from pmmrec.data import prefix as prefix_room
from pmmrec.data.batches import BatchBuilder, BatchLoader, DataConfig
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.prefix import NoRoomError, PrefixConfig
from pmmrec.data.split import Split

MakeDomain = Callable[..., Domain]
WIDTH = 3
TEXTS = ["a", "bb cc", None, "bb cc", "dddd ee f", "gg", "hh ii jj kk", "lllll"]
SEQUENCES = [[0, 1, 2, 3], [4, 5, 6, 7], [0, 3, 6, 4], [2, 4, 5, 1]]


@dataclass
class Ladder:
    """A frozen part that can be checked by eye: a token's state is its id times 1, 2, 3; an image's its mean grey."""

    name: str = "ladder"
    num_rows: int = 0

    @property
    def fingerprint(self) -> str:
        return self.name

    def states(self, inputs: TokenInputs | PixelInputs) -> torch.Tensor:
        values = inputs.token_id_RT if isinstance(inputs, TokenInputs) else inputs.pixels_RCHW.float().mean((1, 2, 3))
        self.num_rows += len(values)
        return values.float()[..., None] * torch.arange(1.0, 1 + WIDTH)


@pytest.fixture
def shop(make_domain: MakeDomain) -> Domain:
    return make_domain(SEQUENCES, texts=TEXTS, images=[0, 1, 2, 5, 7])


@pytest.fixture
def films(make_domain: MakeDomain) -> Domain:
    """Longer texts, and no image at all."""
    texts = [" ".join(["w" * (1 + row)] * 6) for row in range(8)]
    return make_domain(SEQUENCES, name="films", texts=texts)


@pytest.fixture
def open_reader(tmp_path: Path, tokenizer_class: type) -> Callable[..., ItemReader]:
    def make(*domains: Domain, **settings: int) -> ItemReader:
        both = frozenset(Modality)
        return ItemReader(
            domains, both, tokenizer_class(**settings), PixelSpec(8), tmp_path / "cache", max_unreadable=1
        )

    return make


@pytest.fixture
def keep(open_reader: Callable[..., ItemReader]) -> Callable[..., ItemReader]:
    """A reader that keeps the states of both modalities."""

    def make(*domains: Domain, prefix: Ladder | None = None, precision: str = "float32", **settings: int) -> ItemReader:
        reader, prefix = open_reader(*domains, **settings), prefix or Ladder()
        for modality in Modality:
            reader.keep_states(modality, prefix, PrefixConfig(precision=precision))
        return reader

    return make


def read(reader: ItemReader, domain_U: list[int], row_U: list[int]) -> ItemInputs:
    return reader.to_device(reader.read(np.array(domain_U), np.array(row_U)), "cpu")


def text_of(items: ItemInputs) -> PrefixInputs:
    assert isinstance(items.text, PrefixInputs)
    return items.text


def image_of(items: ItemInputs) -> PrefixInputs:
    assert isinstance(items.image, PrefixInputs)
    return items.image


def tables(cache: Path) -> list[Path]:
    return sorted(cache.glob("prefix-*"))


def assert_same(plain: ItemInputs, kept: ItemInputs) -> None:
    """Kept states are those of the rows that the plain reader hands out, with its padding and its places."""
    assert isinstance(plain.text, TokenInputs)
    assert isinstance(plain.image, PixelInputs)
    text, image = text_of(kept), image_of(kept)
    assert torch.equal(text.is_valid_RT, plain.text.is_valid_RT)
    assert torch.equal(text.item_index_R, plain.text.item_index_R)
    assert torch.equal(text.state_R, Ladder().states(plain.text))  # its padding is token 0, so a state of zeros
    assert torch.equal(image.item_index_R, plain.image.item_index_R)
    assert torch.equal(image.state_R, Ladder().states(plain.image))
    assert image.is_valid_RT.shape == (len(image.state_R), 0)


@pytest.mark.parametrize("rows", [[0], [4, 1, 7], [5, 0], [7, 6, 5, 4, 3, 2, 1, 0]])
def test_items_of_one_domain_get_their_states_in_their_places(
    shop: Domain, open_reader: Callable[..., ItemReader], keep: Callable[..., ItemReader], rows: list[int]
) -> None:
    if any(shop.has[Modality.IMAGE][rows]):
        zeros = [0] * len(rows)
        assert_same(read(open_reader(shop), zeros, rows), read(keep(shop), zeros, rows))


def test_two_domains_are_padded_to_the_longest_text_of_both(
    shop: Domain, films: Domain, open_reader: Callable[..., ItemReader], keep: Callable[..., ItemReader]
) -> None:
    domains, rows = [1, 0, 0, 1, 0], [3, 0, 5, 0, 2]
    assert_same(read(open_reader(shop, films), domains, rows), read(keep(shop, films), domains, rows))


def test_a_batch_without_a_modality_gets_one_row_of_zeros_for_item_0(
    shop: Domain, films: Domain, keep: Callable[..., ItemReader]
) -> None:
    reader = keep(films, shop)
    image = image_of(read(reader, [0, 0], [1, 2]))
    assert torch.equal(image.state_R, torch.zeros(1, WIDTH))
    assert image.item_index_R.tolist() == [0]
    text = text_of(read(reader, [1], [2]))
    assert not text.state_R.any()
    assert text.state_R.shape[0] == 1
    assert text.is_valid_RT.any()
    assert text.item_index_R.tolist() == [0]


def test_a_modality_that_no_domain_has_is_read_as_before(films: Domain, open_reader: Callable[..., ItemReader]) -> None:
    reader = open_reader(films)
    reader.keep_states(Modality.IMAGE, Ladder(), PrefixConfig())
    assert isinstance(read(reader, [0], [1]).image, PixelInputs)


def test_each_content_passes_the_frozen_part_once(shop: Domain, keep: Callable[..., ItemReader]) -> None:
    ladder = Ladder()
    keep(shop, prefix=ladder)
    assert ladder.num_rows == 6 + 5  # seven texts, two of them alike; five images


def test_padding_is_not_stored(shop: Domain, open_reader: Callable[..., ItemReader], tmp_path: Path) -> None:
    held = open_reader(shop).keep_states(Modality.TEXT, Ladder(), PrefixConfig()).num_bytes
    num_tokens = sum(1 + len(text.split()) for text in set(TEXTS) - {None})
    assert held == num_tokens * WIDTH * 4
    assert sum((folder / "states.bin").stat().st_size for folder in tables(tmp_path / "cache")) == held


def test_a_second_run_makes_nothing(shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path) -> None:
    first = read(keep(shop), [0, 0], [1, 5])
    made, second = tables(tmp_path / "cache"), Ladder()
    again = read(keep(shop, prefix=second), [0, 0], [1, 5])
    assert second.num_rows == 0
    assert tables(tmp_path / "cache") == made
    assert torch.equal(text_of(first).state_R, text_of(again).state_R)


def test_another_name_tokenizer_size_or_precision_makes_other_tables(
    shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path
) -> None:
    keep(shop)
    counts = [len(tables(tmp_path / "cache"))]
    for changed in ({"prefix": Ladder("other weights")}, {"precision": "bfloat16"}, {"max_tokens": 3}):
        keep(shop, **changed)
        counts.append(len(tables(tmp_path / "cache")))
    assert counts == [2, 4, 6, 7]  # images know nothing of the tokenizer


def test_images_of_another_size_have_another_table(shop: Domain, tmp_path: Path) -> None:
    for size in (8, 8, 16):
        images = frozenset({Modality.IMAGE})
        reader = ItemReader([shop], images, None, PixelSpec(size), tmp_path / "cache", max_unreadable=1)
        reader.keep_states(Modality.IMAGE, Ladder(), PrefixConfig())
    assert len(tables(tmp_path / "cache")) == 2


def test_other_contents_make_other_tables(
    make_domain: MakeDomain, shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path
) -> None:
    keep(shop)
    texts = ["other words here", *TEXTS[1:]]
    keep(make_domain(SEQUENCES, name="second", texts=texts, images=[0, 1, 2, 5, 7]))
    assert len(tables(tmp_path / "cache")) == 3  # new texts, the same images
    keep(make_domain(SEQUENCES, name="third", texts=texts, images=[0, 1, 2, 5]))
    assert len(tables(tmp_path / "cache")) == 4  # the same texts, new images


def test_bfloat16_takes_half_the_room_and_rounds_once(
    shop: Domain, open_reader: Callable[..., ItemReader], keep: Callable[..., ItemReader]
) -> None:
    reader = open_reader(shop)
    wide = reader.keep_states(Modality.TEXT, Ladder(), PrefixConfig())
    narrow = reader.keep_states(Modality.TEXT, Ladder(), PrefixConfig(precision="bfloat16"))
    assert narrow.num_bytes * 2 == wide.num_bytes
    found = text_of(read(keep(shop, precision="bfloat16"), [0, 0], [4, 6])).state_R
    exact = text_of(read(keep(shop), [0, 0], [4, 6])).state_R
    assert found.dtype == torch.float32
    assert torch.equal(found, exact.to(torch.bfloat16).float())


def _cut_short(states: Path) -> None:
    states.write_bytes(states.read_bytes()[:-4])


def _flip_a_bit(states: Path) -> None:
    data = bytearray(states.read_bytes())
    data[len(data) // 2] ^= 1
    states.write_bytes(bytes(data))


def _lose_the_index(states: Path) -> None:
    (states.parent / "index.json").unlink()


def _break_the_index(states: Path) -> None:
    (states.parent / "index.json").write_text("{}")


@pytest.mark.parametrize("harm", [_cut_short, _flip_a_bit, _lose_the_index, _break_the_index, Path.unlink])
def test_a_broken_table_is_made_again(
    shop: Domain, keep: Callable[..., ItemReader], tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    expected = text_of(read(keep(shop), [0, 0, 0], [0, 4, 6])).state_R
    made = tables(tmp_path / "cache")
    for folder in made:
        harm(folder / "states.bin")
    ladder = Ladder()
    again = text_of(read(keep(shop, prefix=ladder), [0, 0, 0], [0, 4, 6])).state_R
    assert ladder.num_rows == 11
    assert torch.equal(again, expected)
    assert tables(tmp_path / "cache") == made


def test_a_faster_process_with_the_same_states_wins(
    shop: Domain, open_reader: Callable[..., ItemReader], tmp_path: Path
) -> None:
    class Overtaken(Ladder):
        def states(self, inputs: TokenInputs | PixelInputs) -> torch.Tensor:
            open_reader(shop).keep_states(Modality.TEXT, Ladder(), PrefixConfig())
            return super().states(inputs)

    reader = open_reader(shop)
    reader.keep_states(Modality.TEXT, Overtaken(), PrefixConfig())
    assert text_of(read(reader, [0], [6])).state_R.any()
    assert [path.name for path in (tmp_path / "cache").glob("*prefix-*")] == [tables(tmp_path / "cache")[0].name]


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


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_states(
    shop: Domain, films: Domain, keep: Callable[..., ItemReader], workers: int
) -> None:
    domains = (shop, films)
    reader, data = keep(*domains), DataConfig()
    rules = (data.window, data.mixing, data.corruption, 3, 1, frozenset())
    builder = BatchBuilder(domains, [Split(domain) for domain in domains], reader, *rules, rank=0, world=1)
    alone, ahead = (list(BatchLoader(builder, number).epoch(0)) for number in (0, workers))
    assert len(alone) == len(ahead) > 1
    for one, other in zip(alone, ahead, strict=True):
        assert isinstance(other.items.text, PrefixSlots)  # a worker names states; it never fetches them
        expected, found = reader.to_device(one.items, "cpu"), reader.to_device(other.items, "cpu")
        assert torch.equal(text_of(expected).state_R, text_of(found).state_R)
        assert torch.equal(image_of(expected).state_R, image_of(found).state_R)
        assert torch.equal(image_of(expected).item_index_R, image_of(found).item_index_R)


def test_a_reader_that_travelled_to_another_process_fetches_the_same(
    shop: Domain, keep: Callable[..., ItemReader]
) -> None:
    reader = keep(shop)
    travelled = pickle.loads(pickle.dumps(reader))  # noqa: S301  what a spawned worker does with it
    expected, found = (text_of(read(one, [0, 0], [4, 1])).state_R for one in (reader, travelled))
    assert torch.equal(expected, found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_table_moves_to_a_gpu_that_has_plenty_of_room(shop: Domain, keep: Callable[..., ItemReader]) -> None:
    reader, cuda = keep(shop), torch.device("cuda:0")
    items = reader.to_device(reader.read(np.array([0, 0]), np.array([1, 5])), cuda)
    assert text_of(items).state_R.device == cuda
    assert torch.equal(text_of(items).state_R.cpu(), text_of(read(reader, [0, 0], [1, 5])).state_R)
    table = reader.keep_states(Modality.TEXT, Ladder(), PrefixConfig())._tables[0]
    table.move_to(cuda)
    assert table._states.device == cuda


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_table_that_would_fill_a_gpu_stays_on_disk(
    shop: Domain, open_reader: Callable[..., ItemReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_room, "DEVICE_SHARE", 1e-12)
    table = open_reader(shop).keep_states(Modality.TEXT, Ladder(), PrefixConfig())._tables[0]
    table.move_to(torch.device("cuda:0"))
    assert table._states.device.type == "cpu"
