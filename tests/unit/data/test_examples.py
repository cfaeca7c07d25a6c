"""Interactions are examples of a user and an item, each shown once an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from examples import example_of
from shops import NOISY, Shops

from pmmrec.contracts import Batch
from pmmrec.data.batches import BatchBuilder, DataConfig, Division
from pmmrec.data.examples import ExampleKind, example_kinds
from pmmrec.data.examples.interactions import Interactions
from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import Split, SplitPart
from pmmrec.errors import RecipeError
from pmmrec.family import Entry
from pmmrec.requests import DrawnNegatives, Masked, NextItems, Requests, View, WindowRequest

ONE = DrawnNegatives()
SINGLE = DataConfig(examples="interactions")


def builder(shops: Shops, requests: Requests, batch_users: int = 20, **division: int) -> BatchBuilder:
    return BatchBuilder(shops.splits, shops.reader, SINGLE, requests, batch_users, 0, Division(**division))


def epoch_of(made: BatchBuilder, epoch: int = 0) -> list[Batch]:
    return [made.build(epoch, step) for step in range(made.steps_per_epoch)]


def pairs_of(batch: Batch) -> list[tuple[str, int, int]]:
    """User, domain and item of every target."""
    of_pass = batch.windows.passes[NextItems()]
    assert of_pass.is_target_BL.all()
    index = of_pass.target_index_BL[:, -1]
    domains, rows = batch.items.domain_U[index].tolist(), batch.items.row_U[index].tolist()
    return list(zip(batch.user_id, domains, rows, strict=True))


def test_an_epoch_shows_every_training_interaction_once(shops: Shops) -> None:
    shown = Counter(pair for batch in epoch_of(builder(shops, Requests.of(NextItems()))) for pair in pairs_of(batch))
    expected: Counter[tuple[str, int, int]] = Counter()
    for domain, (name, split) in enumerate(zip(("first", "second"), shops.splits, strict=True)):
        for user in range(split.domain.num_users):
            expected.update((f"{name}/u{user:02d}", domain, row) for row in split.train(user).tolist())
    assert shown == expected


def test_an_interaction_has_no_input_and_its_user_is_told(shops: Shops) -> None:
    first_user = {"first": 0, "second": shops.domains[0].num_users}
    for batch in epoch_of(builder(shops, Requests.of(NextItems(), negatives=ONE))):
        of_pass = batch.windows.passes[NextItems()]
        assert of_pass.item_index_BL.shape == (len(batch.user_id), 1)
        assert not of_pass.is_valid_BL.any()
        users = [first_user[name.split("/u")[0]] + int(name[-2:]) for name in batch.user_id]
        assert batch.windows.user_index_B is not None
        assert batch.windows.user_index_B.tolist() == users
        for (name, domain, _), place in zip(
            pairs_of(batch), of_pass.negative_index_BLC[ONE][:, 0, 0].tolist(), strict=True
        ):
            assert int(batch.items.domain_U[place]) == domain
            assert int(batch.items.row_U[place]) not in shops.splits[domain].train(int(name[-2:])).tolist()


def test_processes_share_out_what_one_would_show(shops: Shops) -> None:
    requests = Requests.of(NextItems(), negatives=ONE)
    whole = epoch_of(builder(shops, requests))
    parts = [epoch_of(builder(shops, requests, rank=rank, world=2)) for rank in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        assert [pair for part in shares for pair in pairs_of(part)] == pairs_of(batch)


def test_log_q_is_the_share_of_an_item_in_all_interactions(shops: Shops) -> None:
    made = builder(shops, Requests.of(NextItems(), views=(View.POPULARITY,)), batch_users=200)
    (batch,) = epoch_of(made)
    assert batch.log_q_U is not None
    counts = Counter((domain, row) for _, domain, row in pairs_of(batch))
    for place, log_q in enumerate(batch.log_q_U.tolist()):
        key = (int(batch.items.domain_U[place]), int(batch.items.row_U[place]))
        assert np.exp(log_q) == pytest.approx(counts[key], rel=1e-5)  # float32


def test_an_interaction_that_is_not_there_is_an_error(shops: Shops) -> None:
    examples = Interactions(shops.splits[0])
    with pytest.raises(IndexError, match=f"interaction {examples.num_examples} of {examples.num_examples}"):
        examples.user(examples.num_examples)
    assert torch.tensor(examples.expected_slots()).sum() == examples.num_examples


@pytest.mark.parametrize("request_", [NOISY, Masked()])
def test_objectives_that_read_histories_are_refused(shops: Shops, request_: WindowRequest) -> None:
    with pytest.raises(RecipeError, match="interactions have no history, but an objective reads"):
        builder(shops, Requests.of(request_))


def test_users_and_items_without_a_training_interaction_are_named(shops: Shops) -> None:
    split = shops.splits[0]
    first, alone = split.domain.user_ids[0].as_py(), split.domain.item_ids[0].as_py()

    class FewerInteractions(Split):
        """All train but those of the first user and of the first item."""

        def parts(self, stretch: Stretch) -> np.ndarray:
            is_left_out_H = stretch.item_H == 0
            if stretch.first == 0:
                is_left_out_H |= np.arange(len(stretch.item_H)) < stretch.offset_B[1]
            return np.where(is_left_out_H, SplitPart.VALIDATION, SplitPart.TRAIN).astype(np.uint8)

    told = Interactions(FewerInteractions(split.config, split.domain)).warning
    assert told is not None
    assert f"1 of {split.domain.num_users} users, such as {first!r}" in told
    assert f"of {split.domain.num_items} items, such as {alone!r}, have no training interaction" in told


@pytest.mark.parametrize("written", ["windows", "interactions", {"type": "windows"}, {"type": "interactions"}])
def test_a_kind_without_settings_is_written_as_its_name(written: str | dict[str, str]) -> None:
    config = DataConfig.model_validate({"examples": written})
    name = written if isinstance(written, str) else written["type"]
    assert config.model_dump(mode="json")["examples"] == name
    assert DataConfig.model_validate(config.model_dump(mode="json")) == config


def test_a_kind_that_does_not_exist_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match="no kind of examples is called 'window'; did you mean 'windows'"):
        DataConfig.model_validate({"examples": "window"})


@pytest.mark.parametrize("entry", list(example_kinds), ids=lambda entry: entry.name)
def test_the_example_in_the_docstring_of_a_kind_is_valid(entry: Entry[ExampleKind]) -> None:
    config = DataConfig.model_validate(example_of(entry.part_class)["data"])
    assert isinstance(config.kind, entry.part_class)
