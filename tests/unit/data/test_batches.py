"""A batch holds each item once, and is the same for any number of processes and workers."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from shops import NOISY, Shops, epoch_of, tensors_of, without_places

from pmmrec.contracts import Batch, TextSpec, WindowPass
from pmmrec.data.batches import BatchBuilder, DataConfig, Division
from pmmrec.data.examples.windows import WindowConfig
from pmmrec.data.items import ItemReader
from pmmrec.data.loader import BatchLoader
from pmmrec.data.mixing import MixingConfig
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.errors import RecipeError
from pmmrec.requests import Noise, Requests, View, WindowRequest

Slot = tuple[int, int]  # domain, row


def keys_of(batch: Batch) -> list[Slot]:
    return list(zip(batch.items.domain_U.tolist(), batch.items.row_U.tolist(), strict=True))


def slots_of(batch: Batch) -> list[list[Slot]]:
    """The items of each window, without padding."""
    keys = keys_of(batch)
    index, is_valid = batch.windows.item_index_BS.tolist(), batch.windows.is_valid_BS.tolist()
    return [[keys[i] for i, valid in zip(*row, strict=True) if valid] for row in zip(index, is_valid, strict=True)]


def of_pass(batch: Batch) -> WindowPass:
    """The pass with noise."""
    return batch.windows.passes[NOISY]


def noise_of(batch: Batch) -> list[list[tuple[Slot, int]]]:
    """Item and label of each corrupted input, padding included."""
    keys = keys_of(batch)
    index, noise = of_pass(batch).item_index_BL.tolist(), of_pass(batch).noise_BL.tolist()
    valid = batch.windows.is_valid_BS[:, :-1].tolist()
    return [
        [(keys[i], label) for i, label, is_input in zip(*row, strict=True) if is_input]
        for row in zip(index, noise, valid, strict=True)
    ]


def test_every_user_is_seen_exactly_once_an_epoch(shops: Shops) -> None:
    expected = [f"first/u{user:02d}" for user in range(14)] + [f"second/u{user:02d}" for user in range(7)]
    for epoch in (0, 1):
        assert sorted(name for batch in epoch_of(shops.builder(), epoch) for name in batch.user_id) == expected


def test_a_window_is_a_stretch_of_its_users_training_items(shops: Shops) -> None:
    for batch in epoch_of(shops.builder()):
        for name, slots in zip(batch.user_id, slots_of(batch), strict=True):
            domain = ["first", "second"].index(name.split("/")[0])
            train = [(domain, row) for row in shops.splits[domain].train(int(name[-2:])).tolist()]
            assert len(slots) == min(5, len(train))
            assert any(train[start : start + len(slots)] == slots for start in range(len(train)))


def test_windows_are_padded_on_the_left_to_the_longest_of_the_batch(shops: Shops) -> None:
    for batch in epoch_of(shops.builder(NOISY)):
        is_valid_BS = batch.windows.is_valid_BS
        assert is_valid_BS[:, -2:].all()
        assert is_valid_BS.any(dim=0).all()
        assert (is_valid_BS[:, 1:] >= is_valid_BS[:, :-1]).all()
        assert (batch.windows.item_index_BS[~is_valid_BS] == 0).all()
        is_padding_BL = ~batch.windows.is_valid_BS[:, :-1]
        assert (of_pass(batch).item_index_BL[is_padding_BL] == 0).all()
        assert (of_pass(batch).noise_BL[is_padding_BL] == Noise.UNCHANGED).all()


def test_items_are_distinct_sorted_and_all_in_use(shops: Shops) -> None:
    for batch in epoch_of(shops.builder()):
        keys = keys_of(batch)
        assert keys == sorted(set(keys)) == sorted({slot for slots in slots_of(batch) for slot in slots})


def test_equal_item_ids_of_two_domains_are_two_items(shops: Shops) -> None:
    (batch,) = epoch_of(shops.builder(batch_users=21))
    assert shops.domains[0].item_ids == shops.domains[1].item_ids
    assert keys_of(batch) == [(domain, row) for domain in (0, 1) for row in range(9)]
    assert sorted(batch.items.fields["text"].item_index_R.values) == [place for place in range(18) if place % 9 != 8]


def test_no_text_or_image_is_read_twice_for_a_batch(shops: Shops, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[str, int]] = []
    tables = [*shops.reader._tokens["text"], *shops.reader._pixels.values()]
    for table_class in {type(table) for table in tables}:
        plain = table_class.read

        def counted(self: Any, rows: np.ndarray, plain: Any = plain) -> Any:
            read.extend((str(id(self)), row) for row in rows.tolist())
            return plain(self, rows)

        monkeypatch.setattr(table_class, "read", counted)
    builder = shops.builder(NOISY)
    for step in range(builder.steps_per_epoch):
        batch = builder.build(0, step)
        expected = sum(int(batch.items.has_U[modality].sum()) for modality in ("text", "image"))
        assert len(read) == len(set(read)) == expected
        read.clear()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_spreading_over_processes_changes_no_user_window_or_corruption(shops: Shops, world: int) -> None:
    views, window = (NOISY, View.POPULARITY), WindowConfig(size=9)  # some shares hold short windows only
    whole = epoch_of(shops.builder(*views, window=window))
    parts = [epoch_of(shops.builder(*views, window=window, rank=rank, world=world)) for rank in range(world)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert batch.user_id == tuple(name for part in shares for name in part.user_id)
        assert slots_of(batch) == [slots for part in shares for slots in slots_of(part)]
        assert noise_of(batch) == [noise for part in shares for noise in noise_of(part)]
        assert {part.windows.item_index_BS.shape[1] for part in shares} == {batch.windows.item_index_BS.shape[1]}
        assert batch.log_q_U is not None
        log_q_of_one_user = dict(zip(keys_of(batch), batch.log_q_U - math.log(len(batch.user_id)), strict=True))
        for part in shares:
            assert part.log_q_U is not None  # expected slots of an item in this share, where its negatives come from
            expected = torch.stack([log_q_of_one_user[key] for key in keys_of(part)]) + math.log(len(part.user_id))
            torch.testing.assert_close(part.log_q_U, expected, rtol=0, atol=1e-6)  # float32; measured 5e-7


def test_an_item_of_another_process_may_come_as_a_replacement(shops: Shops) -> None:
    parts = [batch for rank in (0, 1, 2) for batch in epoch_of(shops.builder(NOISY, rank=rank, world=3))]
    shown = [{slot for slots in slots_of(batch) for slot in slots} for batch in parts]
    assert any(set(keys_of(batch)) > own for batch, own in zip(parts, shown, strict=True))


@pytest.mark.parametrize("views", [(NOISY, View.POPULARITY), (View.CATALOGUE, View.POPULARITY)])
@pytest.mark.parametrize("world", [2, 3])
def test_with_the_gather_items_are_dealt_out_and_all_else_is_that_of_one_process(
    shops: Shops, world: int, views: tuple[View | WindowRequest, ...]
) -> None:
    whole = epoch_of(shops.builder(*views))
    parts = [epoch_of(shops.builder(*views, rank=rank, world=world, gather=True)) for rank in range(world)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for rank, part in enumerate(shares):
            assert keys_of(part) == keys_of(batch)[rank::world]
            assert part.global_items is not None
            assert part.global_items.num_users == len(batch.user_id)
            slots = Counter(slot for some in slots_of(batch) for slot in some)
            assert part.global_items.num_slots_U.tolist() == [slots[key] for key in keys_of(batch)]
            for modality, has_U in batch.items.has_U.items():
                assert torch.equal(part.global_items.has_U[modality], has_U)
            assert torch.equal(part.log_q_U, batch.log_q_U)
        assert batch.user_id == tuple(name for part in shares for name in part.user_id)
        windows = [list(tensors_of(without_places(part.windows))) for part in (batch, *shares)]
        for expected, *found in zip(*windows, strict=True):
            assert torch.equal(torch.cat(found), expected)


def test_items_too_few_to_go_round_are_encoded_once_more(
    domain_maker: Any, tokenizer_class: Any, tmp_path: Path
) -> None:
    domain = domain_maker(tmp_path)([[0, 1, 2, 3]] * 3, "alike", texts=["a", "b", "c", "d"])
    reader = ItemReader([domain], {"text": TextSpec(tokenizer_class())}, tmp_path / "cache")
    rules: Any = ([leave_one_out(domain)], reader, DataConfig(), Requests(), 3, 0)
    batches = [BatchBuilder(*rules, Division(rank, 3, gather=True)).build(0, 0) for rank in range(3)]
    assert [batch.items.row_U.tolist() for batch in batches] == [[0], [1], [0]]
    assert all(batch.global_items.num_slots_U.tolist() == [3, 3] for batch in batches)


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize(("world", "workers"), [(2, 0), (2, 2), (3, 0), (3, 2)])
def test_neither_processes_nor_workers_change_the_order_of_users(
    shops: Shops, world: int, workers: int, gather: bool
) -> None:
    """21 users in steps of 5 or 6: steps are uneven, and so are the shares of the processes."""
    whole = [batch.user_id for epoch in (0, 1) for batch in epoch_of(shops.builder(), epoch)]
    loaders = [BatchLoader(shops.builder(rank=rank, world=world, gather=gather), workers) for rank in range(world)]
    parts = [[batch.user_id for epoch in (0, 1) for batch in loader.epoch(epoch)] for loader in loaders]
    assert [sum(shares, ()) for shares in zip(*parts, strict=True)] == whole
    assert len(set(whole[0] + whole[1] + whole[2] + whole[3])) == 21
    assert all(len(shares) for part in parts for shares in part)


def test_replacements_are_items_of_other_users_of_the_same_domain(shops: Shops) -> None:
    labels: Counter[int] = Counter()
    for epoch in range(3):
        for batch in epoch_of(shops.builder(NOISY), epoch):
            everything = slots_of(batch)
            for user, (slots, noise) in enumerate(zip(everything, noise_of(batch), strict=True)):
                others = {slot for place, some in enumerate(everything) for slot in some if place != user}
                labels.update(label for _, label in noise)
                for (item, label), original in zip(noise, slots[:-1], strict=True):
                    assert (label == Noise.UNCHANGED) == (item == original)
                    if label == Noise.REPLACED:
                        assert item in others - set(slots)
                        assert item[0] == original[0]
    assert set(labels) == {0, 1, 2}


def test_corruption_and_windows_change_from_epoch_to_epoch(shops: Shops) -> None:
    epochs = [epoch_of(shops.builder(NOISY), epoch) for epoch in (0, 1)]
    windows, noises = [
        [dict(item for batch in batches for item in zip(batch.user_id, read(batch), strict=True)) for batches in epochs]
        for read in (slots_of, noise_of)
    ]
    assert windows[0] != windows[1]
    assert noises[0] != noises[1]


def test_a_user_seen_again_within_an_epoch_is_given_another_window(shops: Shops) -> None:
    mixing = MixingConfig(weights={"first": 1, "second": 9})
    seen: dict[str, set[tuple[Slot, ...]]] = {}
    for batch in epoch_of(shops.builder(mixing=mixing)):
        for name, slots in zip(batch.user_id, slots_of(batch), strict=True):
            seen.setdefault(name, set()).add(tuple(slots))
    assert any(len(windows) > 1 for windows in seen.values())


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_log_q_is_the_mean_number_of_slots_of_an_item_over_an_epoch(shops: Shops, policy: Any) -> None:
    """These policies show every slot once an epoch; batches of equal size make the mean exact."""
    builder = shops.builder(View.POPULARITY, window=WindowConfig(size=5, policy=policy), batch_users=7)
    batches = epoch_of(builder)
    slots = Counter(slot for batch in batches for some in slots_of(batch) for slot in some)
    num_users = sum(len(batch.user_id) for batch in batches)
    for batch in batches:
        assert batch.log_q_U is not None
        expected = [slots[key] * len(batch.user_id) / num_users for key in keys_of(batch)]
        np.testing.assert_allclose(batch.log_q_U.exp().numpy(), expected, rtol=1e-6)  # float32; measured 9e-8


@pytest.mark.parametrize("batches", ["mixed", "one_domain"])
def test_log_q_agrees_with_the_frequency_of_random_windows(shops: Shops, batches: Any) -> None:
    mixing = MixingConfig(weights={"first": 1, "second": 2}, batches=batches)
    builder = shops.builder(View.POPULARITY, mixing=mixing, batch_users=21)
    slots: Counter[Slot] = Counter()
    q: dict[Slot, float] = {}
    for epoch in range(150):
        for batch in epoch_of(builder, epoch):  # one step that shows a domain, and one of constant size
            assert batch.log_q_U is not None
            slots.update(slot for some in slots_of(batch) for slot in some)
            q |= dict(zip(keys_of(batch), batch.log_q_U.exp().tolist(), strict=True))
    assert len(q) == 18
    for key, expected in q.items():
        assert abs(slots[key] - 150 * expected) < 3 * (150 * expected) ** 0.5  # Poisson errors; measured 0.9


def test_without_the_views_nothing_extra_is_made(shops: Shops) -> None:
    batch = shops.builder().build(0, 0)
    assert batch.log_q_U is None
    assert batch.windows.passes == {}


def test_more_processes_than_users_of_a_batch_are_refused(shops: Shops) -> None:
    with pytest.raises(RecipeError, match="a batch of 5 users leaves some of 6 processes without any"):
        shops.builder(batch_users=6, world=6)


def test_settings_survive_being_written_down() -> None:
    config = DataConfig(mixing=MixingConfig(weights={"a": 2.0}), workers=3)
    assert DataConfig.model_validate(config.model_dump()) == config


def test_a_batch_that_holds_the_catalogue_shows_the_same_windows(shops: Shops) -> None:
    few, all_ = epoch_of(shops.builder(NOISY)), epoch_of(shops.builder(NOISY, View.CATALOGUE))
    everything = [(d, row) for d, domain in enumerate(shops.domains) for row in range(domain.num_items)]
    for small, large in zip(few, all_, strict=True):
        assert keys_of(large) == everything
        assert len(keys_of(small)) < len(everything)
        assert slots_of(large) == slots_of(small)
        assert noise_of(large) == noise_of(small)
