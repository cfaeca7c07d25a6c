"""Kept states are computed once, shared by runs, made again when damaged, and fetched for a batch."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kept_states import SEQUENCES, TEXTS, WIDTH, Ladder, assert_same, image_of, read, tables, text_of

from pmmrec.contracts import Modality, PixelInputs, PixelSpec, PrefixSlots, TokenInputs
from pmmrec.data import prefix as prefix_file
from pmmrec.data.batches import BatchBuilder, DataConfig
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.loader import BatchLoader
from pmmrec.data.prefix import DeviceRoom, PrefixConfig
from pmmrec.data.prefix_room import NoRoomError
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.requests import Requests

MakeDomain = Callable[..., Domain]


@pytest.mark.parametrize("rows", [[0], [4, 1, 7], [5, 0], [7, 6, 5, 4, 3, 2, 1, 0]])
def test_items_of_one_domain_get_their_states_in_their_places(
    shop: Domain, open_reader: Callable[..., ItemReader], keep: Callable[..., ItemReader], rows: list[int]
) -> None:
    zeros = [0] * len(rows)
    assert_same(read(open_reader(shop), zeros, rows), read(keep(shop), zeros, rows))


def test_texts_of_two_domains_lie_longest_first(
    shop: Domain, films: Domain, open_reader: Callable[..., ItemReader], keep: Callable[..., ItemReader]
) -> None:
    domains, rows = [1, 0, 0, 1, 0], [3, 0, 5, 0, 2]
    assert_same(read(open_reader(shop, films), domains, rows), read(keep(shop, films), domains, rows))


@pytest.mark.parametrize("domains", [[0, 0, 0], [1, 0, 0, 1, 0]])
def test_a_pooled_text_has_one_state_whatever_its_length(
    shop: Domain,
    films: Domain,
    open_reader: Callable[..., ItemReader],
    keep: Callable[..., ItemReader],
    domains: list[int],
) -> None:
    rows = [3, 0, 5, 0, 2][: len(domains)]
    reader = keep(shop, films, prefix=Ladder(is_pooled=True))
    plain, kept = read(open_reader(shop, films), domains, rows), text_of(read(reader, domains, rows))
    plain_text = plain.fields["text"]
    assert isinstance(plain_text, TokenInputs)
    assert kept.packing is None
    order_r = np.argsort(plain_text.item_index_R.values)
    assert kept.item_index_R.values.tolist() == plain_text.item_index_R.values[order_r].tolist()
    means_RH = plain_text.packing.mean(Ladder().states(plain_text))
    assert torch.equal(kept.state, means_RH[torch.from_numpy(order_r)])


def test_pooled_texts_take_a_row_each(shop: Domain, open_reader: Callable[..., ItemReader]) -> None:
    held = open_reader(shop).keep_states(Modality.TEXT, Ladder(is_pooled=True), PrefixConfig()).num_bytes
    assert held == len(set(TEXTS) - {None}) * WIDTH * 4


def test_a_batch_without_a_modality_gets_one_row_of_zeros_that_stands_in(
    shop: Domain, films: Domain, keep: Callable[..., ItemReader]
) -> None:
    reader = keep(films, shop)
    image = image_of(read(reader, [0, 0], [1, 2]))
    assert torch.equal(image.state, torch.zeros(1, WIDTH))
    assert image.item_index_R.values.tolist() == [2]
    text = text_of(read(reader, [1], [2]))
    assert torch.equal(text.state, torch.zeros(1, WIDTH))
    assert text.packing is not None
    assert text.packing.length_R.tolist() == [1]
    assert text.item_index_R.values.tolist() == [1]


def test_a_reader_that_may_not_make_states_reads_kept_ones(
    shop: Domain, keep: Callable[..., ItemReader], open_reader: Callable[..., ItemReader]
) -> None:
    reader, ladder, config = open_reader(shop), Ladder(), PrefixConfig(makes=False)
    for modality in (Modality.TEXT, Modality.IMAGE):
        with pytest.raises(NoRoomError, match="no frozen states are kept there, and none are made now"):
            reader.keep_states(modality, ladder, config)
    expected = read(keep(shop), [0, 0], [0, 4])
    for modality in (Modality.TEXT, Modality.IMAGE):
        reader.keep_states(modality, ladder, config)
    assert torch.equal(text_of(read(reader, [0, 0], [0, 4])).state, text_of(expected).state)
    assert ladder.num_rows == 0


def test_a_modality_that_no_domain_has_is_read_as_before(films: Domain, open_reader: Callable[..., ItemReader]) -> None:
    reader = open_reader(films)
    reader.keep_states(Modality.IMAGE, Ladder(), PrefixConfig())
    assert isinstance(read(reader, [0], [1]).fields["image"], PixelInputs)


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
    assert torch.equal(text_of(first).state, text_of(again).state)


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
        reader = ItemReader([shop], {"image": PixelSpec(size)}, tmp_path / "cache", max_unreadable=1)
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
    found = text_of(read(keep(shop, precision="bfloat16"), [0, 0], [4, 6])).state
    exact = text_of(read(keep(shop), [0, 0], [4, 6])).state
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
    expected = text_of(read(keep(shop), [0, 0, 0], [0, 4, 6])).state
    made = tables(tmp_path / "cache")
    for folder in made:
        harm(folder / "states.bin")
    ladder = Ladder()
    again = text_of(read(keep(shop, prefix=ladder), [0, 0, 0], [0, 4, 6])).state
    assert ladder.num_rows == 11
    assert torch.equal(again, expected)
    assert tables(tmp_path / "cache") == made


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_states(
    shop: Domain, films: Domain, keep: Callable[..., ItemReader], workers: int
) -> None:
    domains = (shop, films)
    reader, data = keep(*domains), DataConfig()
    builder = BatchBuilder([leave_one_out(domain) for domain in domains], reader, data, Requests(), 3, 1)
    alone, ahead = (list(BatchLoader(builder, number).epoch(0)) for number in (0, workers))
    assert len(alone) == len(ahead) > 1
    for one, other in zip(alone, ahead, strict=True):
        assert isinstance(other.items.fields["text"], PrefixSlots)  # a worker names states; it never fetches them
        expected, found = reader.to_device(one.items, "cpu"), reader.to_device(other.items, "cpu")
        assert torch.equal(text_of(expected).state, text_of(found).state)
        assert torch.equal(image_of(expected).state, image_of(found).state)
        assert image_of(expected).item_index_R.values.tolist() == image_of(found).item_index_R.values.tolist()


def test_a_reader_that_travelled_to_another_process_fetches_the_same(
    shop: Domain, keep: Callable[..., ItemReader]
) -> None:
    reader = keep(shop)
    travelled = pickle.loads(pickle.dumps(reader))  # noqa: S301  what a spawned worker does with it
    expected, found = (text_of(read(one, [0, 0], [4, 1])).state for one in (reader, travelled))
    assert torch.equal(expected, found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_table_moves_to_a_gpu_that_has_plenty_of_room(shop: Domain, keep: Callable[..., ItemReader]) -> None:
    reader, cuda = keep(shop), torch.device("cuda:0")
    items = reader.to_device(reader.read(np.array([0, 0]), np.array([1, 5])), cuda)
    assert text_of(items).state.device == cuda
    assert torch.equal(text_of(items).state.cpu(), text_of(read(reader, [0, 0], [1, 5])).state)
    table = reader.keep_states(Modality.TEXT, Ladder(), PrefixConfig())._tables[0]
    table.move_to(cuda, DeviceRoom())
    assert table._states.device == cuda


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_table_that_would_fill_a_gpu_stays_on_disk(
    shop: Domain, open_reader: Callable[..., ItemReader], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefix_file, "DEVICE_SHARE", 1e-12)
    table = open_reader(shop).keep_states(Modality.TEXT, Ladder(), PrefixConfig())._tables[0]
    table.move_to(torch.device("cuda:0"), DeviceRoom())
    assert table._states.device.type == "cpu"


def test_the_tables_of_a_run_share_one_share_of_a_gpu() -> None:
    asked: list[torch.device] = []

    def free_bytes(device: torch.device) -> int:
        asked.append(device)
        return int(1000 / prefix_file.DEVICE_SHARE)

    room, one, other = DeviceRoom(free_bytes), torch.device("cuda:0"), torch.device("cuda:1")
    assert [room.grants(one, size) for size in (600, 600, 400, 1)] == [True, False, True, False]
    assert room.grants(other, 1000)
    assert asked == [one, other]
