"""Items as examples: which are shown, which are held out, and what their batches hold."""

from __future__ import annotations

import numpy as np
import pytest
from shops import Shops, assert_same

from pmmrec.contracts import Batch
from pmmrec.data.batches import BatchBuilder, DataConfig, Division
from pmmrec.data.examples import NOBODY
from pmmrec.data.loader import BatchLoader
from pmmrec.errors import DataError, RecipeError
from pmmrec.requests import Masked, NextItems, Requests, View

CONTRAST = Requests.of(views=(View.MODALITIES,))


def data_of(held_out: float = 0.0) -> DataConfig:
    return DataConfig.model_validate({"examples": {"type": "items", "held_out": held_out}})


def builder(shops: Shops, held_out: float = 0.0, batch_users: int = 5, **division: int) -> BatchBuilder:
    return BatchBuilder(shops.splits, shops.reader, data_of(held_out), CONTRAST, batch_users, 0, Division(**division))


def epoch_of(made: BatchBuilder, epoch: int = 0) -> list[Batch]:
    return [made.build(epoch, step) for step in range(made.steps_per_epoch)]


def items_of(batch: Batch) -> list[tuple[int, int]]:
    """Domain and row of every example."""
    assert batch.windows.is_valid_BS.all()
    index = batch.windows.item_index_BS[:, 0]
    return list(zip(batch.items.domain_U[index].tolist(), batch.items.row_U[index].tolist(), strict=True))


def test_an_epoch_shows_every_item_once_and_no_user(shops: Shops) -> None:
    batches = epoch_of(builder(shops))
    assert sorted(item for batch in batches for item in items_of(batch)) == [
        (d, row) for d in (0, 1) for row in range(9)
    ]
    for batch in batches:
        assert batch.windows.user_index_B is None
        assert (batch.user_id, batch.unit, batch.windows.passes) == ((), "items", {})
        assert batch.items.num_items == len(batch.windows.item_index_BS)


def test_held_out_items_train_nothing_and_are_those_of_validation(shops: Shops) -> None:
    kind = data_of(0.3).kind
    shown = {item for batch in epoch_of(builder(shops, 0.3)) for item in items_of(batch)}
    for domain, split in enumerate(shops.splits):
        held_out = kind.validation(split, None)
        rows = {int(held_out.items(number, np.random.default_rng(0))[0]) for number in range(held_out.num_examples)}
        assert len(rows) == round(0.3 * 9)
        assert {row for of, row in shown if of == domain} == set(range(9)) - rows
        assert held_out.user(0) == NOBODY
        assert held_out.expected_slots().sum() == len(rows)
        assert kind.validation(split, 1).num_examples == 1


def test_a_validation_loss_needs_items_that_are_held_out(shops: Shops) -> None:
    with pytest.raises(DataError, match=r"data\.examples\.held_out: 0 holds none of 9 items out; raise it"):
        data_of().kind.validation(shops.splits[0], None)


def test_training_needs_items_that_are_not_held_out(shops: Shops) -> None:
    with pytest.raises(DataError, match=r"data\.examples\.held_out: 0\.95 holds all of 9 items out and leaves none to"):
        data_of(0.95).kind.training(shops.splits[0])


def test_processes_share_out_what_one_would_show(shops: Shops) -> None:
    whole = epoch_of(builder(shops))
    parts = [epoch_of(builder(shops, rank=rank, world=2)) for rank in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [item for part in shares for item in items_of(part)] == items_of(batch)


def test_processes_that_gather_encode_each_item_once(shops: Shops) -> None:
    whole = epoch_of(builder(shops))
    parts = [epoch_of(builder(shops, rank=rank, world=2, gather=True)) for rank in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        names = [(part.items.domain_U.tolist(), part.items.row_U.tolist()) for part in shares]
        encoded = [item for domains, rows in names for item in zip(domains, rows, strict=True)]
        assert sorted(encoded) == sorted(items_of(batch))
        assert shares[0].global_items is not None
        assert shares[0].global_items.num_slots_U.tolist() == [1] * len(encoded)


def test_workers_and_a_second_builder_give_the_same_batches(shops: Shops) -> None:
    loaded = BatchLoader(builder(shops), workers=2).epoch(3, first=1)
    for one, other in zip(loaded, epoch_of(builder(shops), 3)[1:], strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (Requests.of(NextItems()), "items have no target, but an objective reads NextItems windows"),
        (Requests.of(Masked()), "items have no history, but an objective reads Masked windows"),
        (Requests.of(views=(View.ORDER,)), "items have no history, but an objective reads the order of its items"),
    ],
)
def test_objectives_that_read_users_are_refused(shops: Shops, requests: Requests, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        BatchBuilder(shops.splits, shops.reader, data_of(), requests, 5, 0)


def test_settings_survive_a_recipe() -> None:
    for held_out, written in ((0.05, "items"), (0.2, {"type": "items", "held_out": 0.2})):
        config = data_of(held_out)
        assert config.model_dump(mode="json")["examples"] == written
        assert DataConfig.model_validate(config.model_dump(mode="json")) == config
