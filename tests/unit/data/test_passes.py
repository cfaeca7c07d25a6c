"""What a pass reads of a window: masks, dropped inputs and drawn negatives, the same on any number of processes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from shops import Shops, epoch_of, tensors_of, without_places
from torch import Tensor

from pmmrec.contracts import Batch, Places, TextSpec
from pmmrec.data import negatives
from pmmrec.data.batches import BatchBuilder, DataConfig
from pmmrec.data.examples.interactions import Interactions
from pmmrec.data.examples.windows import WindowConfig, WindowIndex
from pmmrec.data.items import ItemReader
from pmmrec.data.loader import BatchLoader
from pmmrec.data.negatives import NegativePool
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.data.validation_examples import ValidationExamples
from pmmrec.errors import DataError
from pmmrec.requests import DrawnNegatives, Dropped, Masked, NextItems, Noised, Others, Requests, View, WindowRequest

MASKED, DROPPED = Masked(share=0.3), Dropped(share=0.4)
ONE, POPULAR = DrawnNegatives(), DrawnNegatives(count=3, by="popularity")


def key_at(batch: Batch, place: int) -> tuple[int, int]:
    return int(batch.items.domain_U[place]), int(batch.items.row_U[place])


def domain_and_user(name: str) -> tuple[int, int]:
    domain, user = name.split("/u")
    return ["first", "second"].index(domain), int(user)


def test_the_plain_pass_is_every_item_but_the_last_and_its_follower(shops: Shops) -> None:
    for batch in epoch_of(shops.builder(NextItems())):
        windows, of_pass = batch.windows, batch.windows.passes[NextItems()]
        assert torch.equal(of_pass.item_index_BL, windows.item_index_BS[:, :-1])
        assert torch.equal(of_pass.target_index_BL, windows.item_index_BS[:, 1:])
        assert torch.equal(of_pass.is_target_BL, windows.has_next_BL)


def test_masked_items_are_their_own_targets_and_each_window_has_one(shops: Shops) -> None:
    num_masked, num_items, expected = 0, 0, 0.0
    for epoch in range(6):
        for batch in epoch_of(shops.builder(MASKED), epoch):
            of_pass = batch.windows.passes[MASKED]
            assert of_pass.is_masked_BL is not None
            assert torch.equal(of_pass.item_index_BL, batch.windows.item_index_BS)
            assert torch.equal(of_pass.is_valid_BL, batch.windows.is_valid_BS)
            assert torch.equal(of_pass.is_masked_BL, of_pass.is_target_BL)
            assert (of_pass.target_index_BL == of_pass.item_index_BL)[of_pass.is_target_BL].all()
            assert of_pass.is_target_BL.any(dim=1).all()
            assert not (of_pass.is_target_BL & ~of_pass.is_valid_BL).any()
            num_masked += int(of_pass.is_masked_BL.sum())
            lengths = of_pass.is_valid_BL.sum(dim=1).tolist()
            num_items += sum(lengths)
            expected += sum(0.3 * length + 0.7**length for length in lengths)  # where none is drawn, one is taken
    assert num_masked / num_items == pytest.approx(expected / num_items, abs=0.05)  # 3 standard errors; measured 0.01


def test_each_item_of_a_window_is_the_target_at_its_place(shops: Shops) -> None:
    for batch in epoch_of(shops.builder(Others(), negatives=ONE)):
        windows, of_pass = batch.windows, batch.windows.passes[Others()]
        for index_BL in (of_pass.item_index_BL, of_pass.target_index_BL):
            assert torch.equal(index_BL, windows.item_index_BS)
        for is_there_BL in (of_pass.is_valid_BL, of_pass.is_target_BL):
            assert torch.equal(is_there_BL, windows.is_valid_BS)


def test_a_batch_holds_the_places_of_its_masks(shops: Shops) -> None:
    for asked in ((NextItems(), Noised()), (MASKED, DROPPED), (Others(),)):
        for batch in epoch_of(shops.builder(*asked, View.MODALITIES)):
            windows = batch.windows
            for of_pass in windows.passes.values():
                assert_same_places(of_pass.at_targets, of_pass.is_target_BL)
                assert_same_places(of_pass.at_inputs, of_pass.is_valid_BL)
            index_BS = windows.item_index_BS
            for at, is_there_BL in (
                (windows.at_next, windows.has_next_BL),
                (windows.at_counted, windows.is_counted_BS),
            ):
                assert_same_places(at, is_there_BL)
                items = index_BS[:, : is_there_BL.shape[1]][is_there_BL]
                assert torch.equal(at.item_A[at.which_K], items)
                assert torch.equal(at.item_A, items.unique())


def assert_same_places(places: Places, is_there_BL: Tensor) -> None:
    assert torch.equal(torch.stack((places.user_K, places.position_K), dim=1), is_there_BL.nonzero())


def test_dropped_inputs_leave_the_first_and_the_order(shops: Shops) -> None:
    lengths: Counter[int] = Counter()
    for batch in epoch_of(shops.builder(DROPPED)):
        of_pass, windows = batch.windows.passes[DROPPED], batch.windows
        assert not of_pass.is_target_BL.any()
        for row in range(len(batch.user_id)):
            kept = of_pass.item_index_BL[row][of_pass.is_valid_BL[row]].tolist()
            inputs = windows.item_index_BS[row, :-1][windows.is_valid_BS[row, :-1]].tolist()
            assert kept[0] == inputs[0]
            remaining = iter(inputs)
            assert all(item in remaining for item in kept)  # a subsequence
            lengths[len(inputs) - len(kept)] += 1
    assert len(lengths) > 1


def test_some_windows_keep_their_inputs_and_are_read_by_second_texts(shops: Shops) -> None:
    request, reworded = Dropped(share=0.4, reworded=0.5, reworded_items=0.7), Counter[bool]()
    for batch, plain in zip(epoch_of(shops.builder(request)), epoch_of(shops.builder(DROPPED)), strict=True):
        of_pass, windows, dropped = batch.windows.passes[request], batch.windows, plain.windows.passes[DROPPED]
        assert of_pass.is_reworded_BL is not None
        assert dropped.is_reworded_BL is None
        assert not (of_pass.is_reworded_BL & ~of_pass.is_valid_BL).any()
        for row in range(len(batch.user_id)):
            is_other = bool(of_pass.is_reworded_BL[row].any())
            whole = windows.item_index_BS[row, :-1], windows.is_valid_BS[row, :-1]
            expected = whole if is_other else (dropped.item_index_BL[row], dropped.is_valid_BL[row])
            num_kept = int(of_pass.is_valid_BL[row].sum())
            if is_other or num_kept < int(whole[1].sum()):  # else nothing was dropped, or nothing reworded, by chance
                assert torch.equal(of_pass.item_index_BL[row], expected[0])
                assert torch.equal(of_pass.is_valid_BL[row], expected[1])
            reworded[is_other] += 1
    assert min(reworded[True], reworded[False]) > 0


@pytest.mark.parametrize("negatives", [ONE, POPULAR])
@pytest.mark.parametrize("window", [NextItems(), MASKED])
def test_negatives_are_items_of_the_domain_that_the_user_never_touched(
    shops: Shops, window: NextItems | Masked, negatives: DrawnNegatives
) -> None:
    for batch in epoch_of(shops.builder(window, negatives=negatives)):
        of_pass = batch.windows.passes[window]
        index_BLC = of_pass.negative_index_BLC[negatives]
        assert index_BLC.shape == (*of_pass.is_target_BL.shape, negatives.count)
        assert (index_BLC[~of_pass.is_target_BL] == 0).all()
        for row, name in enumerate(batch.user_id):
            domain, user = domain_and_user(name)
            touched = set(shops.splits[domain].train(user).tolist())
            for place in index_BLC[row][of_pass.is_target_BL[row]].flatten().tolist():
                assert key_at(batch, place)[0] == domain
                assert key_at(batch, place)[1] not in touched


@pytest.mark.parametrize("by", ["uniform", "popularity"])
def test_equal_targets_of_a_user_share_their_negatives_per_pair(shops: Shops, by: str) -> None:
    config = DrawnNegatives(count=2, by=by, per="pair")
    drawn_of, num_repeats, window = {}, 0, WindowConfig(size=3, policy="all")
    for epoch in range(2):
        for batch in epoch_of(shops.builder(NextItems(), negatives=config, window=window), epoch):
            of_pass, keys = batch.windows.passes[NextItems()], _all_keys(batch)
            for row, position in of_pass.is_target_BL.nonzero().tolist():
                pair = (epoch, batch.user_id[row], keys[int(of_pass.target_index_BL[row, position])])
                drawn = [keys[place] for place in of_pass.negative_index_BLC[config][row, position].tolist()]
                num_repeats += pair in drawn_of
                assert drawn_of.setdefault(pair, drawn) == drawn
    assert num_repeats > 20
    later = {pair[1:]: drawn for pair, drawn in drawn_of.items() if pair[0] == 1}
    assert any(drawn != later[pair[1:]] for pair, drawn in drawn_of.items())
    users = {name for _, name, _ in drawn_of}
    assert any(len({tuple(drawn) for (_, name, _), drawn in drawn_of.items() if name == user}) > 2 for user in users)


def test_every_item_in_a_batch_stands_there_once_with_negatives_among_them(shops: Shops) -> None:
    larger = 0
    for plain, batch in zip(
        epoch_of(shops.builder(NextItems())), epoch_of(shops.builder(NextItems(), negatives=ONE)), strict=True
    ):
        keys = [key_at(batch, place) for place in range(batch.items.num_items)]
        assert keys == sorted(set(keys))
        larger += batch.items.num_items - plain.items.num_items
    assert larger > 0


@pytest.mark.parametrize("config", [ONE, POPULAR, DrawnNegatives(count=2, per="pair")])
def test_where_the_last_target_alone_counts_negatives_of_no_other_are_encoded(
    shops: Shops, config: DrawnNegatives
) -> None:
    fewer = 0
    for plain, batch, all_drawn in zip(
        epoch_of(shops.builder(NextItems(), batch_users=2)),
        epoch_of(shops.builder(NextItems(), negatives=config, last_alone=True, batch_users=2)),
        epoch_of(shops.builder(NextItems(), negatives=config, batch_users=2)),
        strict=True,
    ):
        of_pass, keys = batch.windows.passes[NextItems()], _all_keys(batch)
        index_BLC = of_pass.negative_index_BLC[config]
        assert (index_BLC[:, :-1] == 0).all()
        drawn = {keys[place] for place in index_BLC[:, -1].flatten().tolist()}
        assert set(keys) == set(_all_keys(plain)) | drawn
        assert torch.equal(of_pass.is_target_BL, plain.windows.passes[NextItems()].is_target_BL)
        fewer += all_drawn.items.num_items - batch.items.num_items
        for row, name in enumerate(batch.user_id):
            domain, user = domain_and_user(name)
            touched = {(domain, item) for item in shops.splits[domain].train(user).tolist()}
            assert touched.isdisjoint(keys[place] for place in index_BLC[row, -1].tolist())
    assert fewer > 0


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("world", [2, 3])
def test_processes_draw_what_one_would(shops: Shops, world: int, gather: bool) -> None:
    for asked in ((NextItems(),), (MASKED, DROPPED), (MASKED, Dropped(reworded=0.5)), (Others(),)):
        whole = epoch_of(shops.builder(*asked, negatives=POPULAR))
        parts = [
            epoch_of(shops.builder(*asked, negatives=POPULAR, rank=rank, world=world, gather=gather))
            for rank in range(world)
        ]
        for batch, *shares in zip(whole, *parts, strict=True):
            found = [_drawn(part, _all_keys(batch) if gather else _all_keys(part), asked[0]) for part in shares]
            assert [row for part in found for row in part] == _drawn(batch, _all_keys(batch), asked[0])
            if gather:
                windows = [list(tensors_of(without_places(part.windows))) for part in (batch, *shares)]
                for expected, *own in zip(*windows, strict=True):
                    assert torch.equal(torch.cat(own), expected)


def _all_keys(batch: Batch) -> list[tuple[int, int]]:
    return [key_at(batch, place) for place in range(batch.items.num_items)]


def _drawn(batch: Batch, keys: list[tuple[int, int]], window: WindowRequest) -> list[list[tuple[int, int]]]:
    of_pass = batch.windows.passes[window]
    return [
        [keys[place] for place in of_pass.negative_index_BLC[POPULAR][row][of_pass.is_target_BL[row]].flatten()]
        for row in range(len(batch.user_id))
    ]


def test_workers_and_a_later_start_draw_the_same(shops: Shops) -> None:
    builder = shops.builder(MASKED, negatives=ONE)
    alone = epoch_of(builder, 1)
    ahead = list(BatchLoader(shops.builder(MASKED, negatives=ONE), 2).epoch(1, first=1))
    for one, other in zip(alone[1:], ahead, strict=True):
        for left, right in zip(tensors_of(one), tensors_of(other), strict=True):
            assert torch.equal(left, right)


def test_draws_change_from_epoch_to_epoch(shops: Shops) -> None:
    first, second = (epoch_of(shops.builder(NextItems(), negatives=POPULAR), epoch) for epoch in (0, 1))
    drawn = [
        {
            name: row
            for batch in batches
            for name, row in zip(batch.user_id, _drawn(batch, _all_keys(batch), NextItems()), strict=True)
        }
        for batches in (first, second)
    ]
    assert drawn[0] != drawn[1]


def test_popular_items_are_drawn_in_proportion_and_others_evenly(shops: Shops) -> None:
    split = shops.splits[0]
    user = max(range(13), key=lambda one: 9 - len(set(split.train(one).tolist())))
    left = sorted(set(range(9)) - set(split.train(user).tolist()))
    for config, weights in ((ONE, np.ones(9)), (POPULAR, split.train_counts.astype(float))):
        drawn = (
            NegativePool(Interactions(split), 100, np.ones(9, dtype=bool))
            .draw(user, 6000, config, np.random.default_rng(0))
            .ravel()
            - 100
        )
        shares = np.bincount(drawn, minlength=9)[left] / len(drawn)
        expected = weights[left] / weights[left].sum()
        assert set(drawn.tolist()) <= set(left)
        np.testing.assert_allclose(shares, expected, rtol=0, atol=0.03)  # 5 standard errors; measured 0.006


@pytest.mark.parametrize("config", [ONE, POPULAR])
def test_items_that_the_model_cannot_read_are_never_drawn(
    shops: Shops, monkeypatch: pytest.MonkeyPatch, config: DrawnNegatives
) -> None:
    split, is_readable_N = shops.splits[0], np.arange(9) % 2 == 0
    for user in range(13):
        rng, left = np.random.default_rng(user), set(range(0, 9, 2)) - set(split.train(user).tolist())
        if left:
            drawn = NegativePool(Interactions(split), 0, is_readable_N).draw(user, 200, config, rng)
            assert set(drawn.ravel().tolist()) == left
    is_readable_N = np.arange(9) != 3
    monkeypatch.setattr(shops.reader, "is_readable", lambda _domain: is_readable_N)
    for batch in epoch_of(shops.builder(NextItems(), negatives=config)):
        of_pass = batch.windows.passes[NextItems()]
        drawn = of_pass.negative_index_BLC[config][of_pass.is_target_BL].flatten().tolist()
        assert 3 not in {key_at(batch, place)[1] for place in drawn}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ONE, "'u01' touched all 4 items from which negatives are drawn; import the domain without the user"),
        (POPULAR, "'u01' touched all 4 items that someone touched in training, from which .*; draw them uniformly"),
    ],
)
def test_a_user_who_touched_everything_is_named_before_the_first_batch(
    domain_maker, tokenizer, tmp_path, config: DrawnNegatives, message: str
) -> None:
    sequences, texts = [[0, 1, 2, 0, 1], [0, 1, 2, 3, 4, 0, 1]], ["a", "b", "c", "d", None]
    domain = domain_maker(tmp_path)(sequences, "alike", texts=texts, images=[4])
    reader = ItemReader([domain], {"text": TextSpec(tokenizer)}, tmp_path / "cache", max_unreadable=1)
    rules = ([leave_one_out(domain)], reader, DataConfig())
    with pytest.raises(DataError, match=message):
        BatchBuilder(*rules, Requests.of(NextItems(), negatives=config), 2, 0)
    assert BatchBuilder(*rules, Requests.of(NextItems()), 2, 0).build(0, 0).user_id


def test_popularity_leaves_nothing_where_a_user_touched_all_that_anyone_did(domain_maker, tmp_path) -> None:
    domain = domain_maker(tmp_path)([[0, 1, 2, 3], [1, 0, 3, 2]], "alike", texts=["a", "b", "c", "d"])
    pool = NegativePool(Interactions(leave_one_out(domain)), 0, np.ones(4, dtype=bool))
    pool.check([ONE])
    with pytest.raises(DataError, match="'u00' touched all 2 items that someone"):
        pool.check([ONE, POPULAR])


def test_users_without_an_example_are_not_refused(domain_maker, tmp_path) -> None:
    split = leave_one_out(domain_maker(tmp_path)([[0], [1, 1]], "alike", texts=["a", "b"]))
    is_readable_N = np.array([True, False])
    NegativePool(WindowIndex(split, WindowConfig()), 0, is_readable_N).check([ONE])
    with pytest.raises(DataError, match="'u00' touched all 1 items"):
        NegativePool(Interactions(split), 0, is_readable_N).check([ONE])


def test_a_validation_target_may_be_the_last_item_left(domain_maker, tmp_path) -> None:
    split = leave_one_out(domain_maker(tmp_path)([[0, 1, 2, 0], [2, 1]], "alike", texts=["a", "b", "c"]))
    NegativePool(Interactions(split), 0, np.ones(3, dtype=bool)).check([ONE])
    with pytest.raises(DataError, match="'u00' touched all 3 items"):
        NegativePool(ValidationExamples(split, 4), 0, np.ones(3, dtype=bool)).check([ONE])


def test_a_user_with_one_item_left_is_given_that_item(domain_maker, tmp_path) -> None:
    texts = [f"t{n}" for n in range(400)]
    domain = domain_maker(tmp_path)([[*range(399), 0, 1], [399, 0, 1, 2]], "alike", texts=texts)
    drawn = NegativePool(Interactions(leave_one_out(domain)), 0, np.ones(400, dtype=bool)).draw(
        0, 50, ONE, np.random.default_rng(0)
    )
    assert set(drawn.ravel().tolist()) == {399}


@pytest.mark.parametrize("config", [ONE, POPULAR])
@pytest.mark.parametrize("joined", [0, 1 << 18])
def test_several_users_at_once_are_given_what_each_is_given_alone(
    domain_maker, tmp_path, monkeypatch: pytest.MonkeyPatch, config: DrawnNegatives, joined: int
) -> None:
    # Users 0 to 3 have half, a tenth, almost all and all but one of the items behind them: spare numbers run out.
    monkeypatch.setattr(negatives, "MAX_JOINED", joined)
    sequences = [[*range(200), 0, 1], [*range(40), 0, 1], [*range(390), 0, 1], [*range(399), 0, 1], [399, 0, 1, 2]]
    domain = domain_maker(tmp_path)(sequences, "alike", texts=[f"t{n}" for n in range(400)])
    pool = NegativePool(Interactions(leave_one_out(domain)), 1000, np.arange(400) % 7 != 6)
    users, num_targets = [3, 0, 2, 0, 1, 4], [5, 20, 7, 0, 1, 30]
    drawn = pool.draw_each(users, num_targets, config, np.random.default_rng)
    for place, user in enumerate(users):
        alone = pool.draw(user, num_targets[place], config, np.random.default_rng(place))
        np.testing.assert_array_equal(drawn[place], alone)
