"""Impressions as examples: what each holds, and what their batches show."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shops import assert_same, tensors_of

from pmmrec.contracts import Batch, Candidates
from pmmrec.data.batches import BatchBuilder, DataConfig, Division
from pmmrec.data.domain import Domain
from pmmrec.data.importers.impressions import store_impressions
from pmmrec.data.items import ItemReader
from pmmrec.data.loader import BatchLoader
from pmmrec.data.splits import Split, split_of, splits
from pmmrec.errors import DataError, RecipeError
from pmmrec.requests import Dropped, Holding, NextItems, Requests, Shown, View

SEQUENCES = [[0, 1, 2, 3], [3, 0], [2, 4, 4]]
Line = tuple[int, str, int, list[int], list[int]]
HEADER = ("impression_id", "user_id", "split", "known", "item_id", "clicked")
# user, part, known, items that were not clicked, clicked items
SHOWN: list[Line] = [
    (0, "train", 1, [3, 4, 5, 0], [1]),
    (0, "train", 3, [5], [3, 4]),
    (1, "train", 2, [1, 2, 5], [4]),
    (2, "train", 1, [0, 1], [4]),
    (2, "validation", 2, [3, 5], [4]),
    (2, "test", 3, [1], [5]),
]
ALL, TWO = Shown(), Shown(num_not_clicked=2)


def data_of(history: int = 2) -> DataConfig:
    split = {"type": "impressions", "name": "mind"}
    return DataConfig.model_validate({"split": split, "examples": {"type": "impressions", "history": history}})


@pytest.fixture
def split(make_domain: Any, tmp_path: Path) -> Split:
    return split_with(make_domain, tmp_path, SHOWN)


def split_with(make_domain: Any, tmp_path: Path, impressions: list[Line]) -> Split:
    domain = make_domain(SEQUENCES, texts=[f"t{row}" for row in range(6)])
    with (tmp_path / "shown.csv").open("w", newline="", encoding="utf-8") as file:
        lines = [
            (f"l{place}", f"u{user:02d}", part, known, f"i{item:02d}", int(item in clicked))
            for place, (user, part, known, others, clicked) in enumerate(impressions)
            for item in (*others, *clicked)
        ]
        csv.writer(file).writerows([HEADER, *lines])
    store_impressions(domain.folder, tmp_path / "shown.csv", "mind")
    return split_of(splits.config({"type": "impressions", "name": "mind"}), Domain.open(domain.folder))


def builder(split: Split, tmp_path: Path, *asked: Shown, batch_users: int = 3, **division: Any) -> BatchBuilder:
    reader = ItemReader([split.domain], {}, tmp_path / "cache")
    requests = Requests.of(*(asked or (ALL,)))
    return BatchBuilder([split], reader, data_of(), requests, batch_users, 0, Division(**division))


def epoch_of(made: BatchBuilder, epoch: int = 0) -> list[Batch]:
    return [made.build(epoch, step) for step in range(made.steps_per_epoch)]


def shown_in(batch: Batch, request: Shown = ALL) -> list[tuple[str, list[int], list[int], list[int]]]:
    """User, history, items that were not clicked and clicked items of every impression."""
    of_pass = batch.windows.passes[request]
    lists, row_U, found = of_pass.candidates, batch.items.row_U, []
    assert isinstance(lists, Candidates)
    assert not (lists.is_clicked_BC & ~lists.is_shown_BC).any()
    for b, user in enumerate(batch.user_id):
        history = row_U[of_pass.item_index_BL[b]][of_pass.is_valid_BL[b]].tolist()
        items, is_shown, is_clicked = row_U[lists.item_index_BC[b]], lists.is_shown_BC[b], lists.is_clicked_BC[b]
        found.append(
            (user, history, sorted(items[is_shown & ~is_clicked].tolist()), sorted(items[is_clicked].tolist()))
        )
    return found


EXPECTED = sorted(
    (f"shop/u{user:02d}", SEQUENCES[user][:known][-2:], sorted(others), sorted(clicked))
    for user, part, known, others, clicked in SHOWN
    if part == "train"
)


def test_an_epoch_shows_every_training_impression_once_behind_its_history(split: Split, tmp_path: Path) -> None:
    batches = epoch_of(builder(split, tmp_path))
    assert sorted(one for batch in batches for one in shown_in(batch)) == EXPECTED
    for batch in batches:
        assert batch.unit == "impressions"
        assert batch.windows.user_index_B is not None
        assert "candidates" in batch.describe()
        slots = sum(len(history) + len(others) + len(clicked) for _, history, others, clicked in shown_in(batch))
        assert int(batch.sizes()["slots"]) == slots


def test_items_that_were_not_clicked_are_drawn_anew_at_each_visit(split: Split, tmp_path: Path) -> None:
    made, drawn = builder(split, tmp_path, TWO), set()
    for epoch in range(12):
        shown = [one for batch in epoch_of(made, epoch) for one in shown_in(batch, TWO)]
        for (user, history, others, clicked), whole in zip(sorted(shown), EXPECTED, strict=True):
            assert (user, history, clicked) == (whole[0], whole[1], whole[3])
            assert len(others) == min(2, len(whole[2]))
            assert set(others) <= set(whole[2])
            drawn.add((clicked[0], *others))
    assert len([one for one in drawn if one[0] == 1]) > 3
    first, again = epoch_of(made, 3), epoch_of(builder(split, tmp_path, TWO), 3)
    for one, other in zip(first, again, strict=True):
        assert all((a == b).all() for a, b in zip(tensors_of(one), tensors_of(other), strict=True))


def test_one_process_shows_what_two_share_and_workers_change_nothing(split: Split, tmp_path: Path) -> None:
    whole = epoch_of(builder(split, tmp_path, TWO), 1)
    for gather in (False, True):
        parts = [epoch_of(builder(split, tmp_path, TWO, rank=rank, world=2, gather=gather), 1) for rank in (0, 1)]
        for batch, *shares in zip(whole, *parts, strict=True):
            if not gather:
                assert [one for share in shares for one in shown_in(share, TWO)] == shown_in(batch, TWO)
            encoded = {row for share in shares for row in share.items.row_U.tolist()}
            assert encoded == set(batch.items.row_U.tolist())
    for one, other in zip(BatchLoader(builder(split, tmp_path, TWO), workers=2).epoch(1), whole, strict=True):
        assert_same(one, other)


def test_objectives_over_the_history_read_it_too(split: Split, tmp_path: Path) -> None:
    reader = ItemReader([split.domain], {}, tmp_path / "cache")
    requests = Requests.of(ALL, NextItems(), views=(View.POPULARITY,))
    made = BatchBuilder([split], reader, data_of(3), requests, 4, 0)
    (batch,) = epoch_of(made)
    assert batch.log_q_U is not None
    histories = [history for _, history, _, _ in shown_in(batch)]
    assert int(batch.windows.passes[NextItems()].is_target_BL.sum()) == sum(len(one) - 1 for one in histories)
    counts = np.bincount([item for history in histories for item in history], minlength=6)
    for row, log_q in zip(batch.items.row_U.tolist(), batch.log_q_U.tolist(), strict=True):
        assert np.exp(log_q) == pytest.approx(counts[row], rel=1e-5)  # float32


def test_no_item_that_a_user_touched_in_training_is_a_negative(make_domain: Any, tmp_path: Path) -> None:
    split = split_with(make_domain, tmp_path, [(0, "train", 1, [4], [5]), (1, "validation", 2, [4], [5])])
    assert set(data_of().kind.training(split).touched(0).tolist()) == {*SEQUENCES[0], 5}


def test_histories_of_one_item_have_one_place_for_an_input(make_domain: Any, tmp_path: Path) -> None:
    split = split_with(make_domain, tmp_path, [(0, "train", 1, [4], [5]), (2, "train", 1, [0], [5])])
    reader = ItemReader([split.domain], {}, tmp_path / "cache")
    (batch,) = epoch_of(BatchBuilder([split], reader, data_of(), Requests.of(ALL, NextItems(), Dropped()), 3, 0))
    passes = batch.windows.passes
    for request in (NextItems(), Dropped()):
        assert passes[request].is_valid_BL.tolist() == [[False], [False]]
        assert not passes[request].is_target_BL.any()
    assert passes[ALL].is_valid_BL.tolist() == [[False, True], [False, True]]


def test_a_validation_loss_reads_the_impressions_of_validation(split: Split) -> None:
    examples = data_of().kind.validation(split, None)
    assert examples.num_examples == 1
    assert examples.items(0, np.random.default_rng(0)).tolist() == [2, 4]
    shown = examples.impression(0)
    assert shown is not None
    assert shown.item_C[shown.is_clicked_C].tolist() == [4]
    assert set(examples.touched(2).tolist()) == {2, 4}
    with pytest.raises(IndexError, match="impression 1 of 1"):
        examples.user(1)


def test_another_split_has_no_impressions(make_domain: Any) -> None:
    domain = make_domain(SEQUENCES, texts=[f"t{row}" for row in range(6)])
    with pytest.raises(RecipeError, match=r"is leave_one_out; set data\.split="):
        data_of().kind.training(split_of(splits.config({"type": "leave_one_out"}), domain))


def test_impressions_without_any_of_training_are_refused(make_domain: Any, tmp_path: Path) -> None:
    domain = make_domain(SEQUENCES, texts=[f"t{row}" for row in range(6)])
    lines = [("l", "u00", "test", 2, "i01", 1), ("l", "u00", "test", 2, "i02", 0)]
    with (tmp_path / "shown.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *lines])
    store_impressions(domain.folder, tmp_path / "shown.csv", "mind")
    split = split_of(splits.config({"type": "impressions", "name": "mind"}), Domain.open(domain.folder))
    with pytest.raises(DataError, match="holds no impression of train; store some whose split is train"):
        data_of().kind.training(split)


def test_candidates_need_impressions(split: Split, tmp_path: Path) -> None:
    reader = ItemReader([split.domain], {}, tmp_path / "cache")
    with pytest.raises(RecipeError, match="windows have no candidates, but an objective reads Shown windows; choose"):
        BatchBuilder([split], reader, DataConfig(), Requests.of(ALL), 3, 0)
    assert Holding.CANDIDATES in data_of().kind.holds
