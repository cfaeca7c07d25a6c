"""A step in parts is the step at once, in values and gradients, and keeps less in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import train_gathered
from torch import Tensor, nn

from pmmrec.contracts import Batch, ItemInputs, ItemVectors, Modality
from pmmrec.data.batches import DataConfig
from pmmrec.errors import RecipeError
from pmmrec.models import ItemEncoder
from pmmrec.train.accumulate import AccumulateConfig, checkpoint_activations, encode_in_parts, item_parts
from pmmrec.train.config import TrainConfig
from pmmrec.train.loop import Loop
from pmmrec.train.optim import build_optimizer
from pmmrec.train.prepare import Batches, Sources
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.task import TrainingTask
from tests.support.packed import texts_of

ATOL = 1e-12  # float64; measured at most 1e-15


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("accumulate")
    train_gathered.make_home(folder)
    return folder


@pytest.fixture(scope="module")
def sources(home: Path) -> Sources:
    return train_gathered.sources_of(home)


@pytest.fixture
def task(home: Path, sources: Sources) -> TrainingTask:
    return train_gathered.task_of(home, train_gathered.SCALED, sources)


@pytest.fixture
def batch(home: Path, sources: Sources, task: TrainingTask) -> Batch:
    reader = train_gathered.reader_of(home, task, sources)
    rules = (DataConfig(), sources, reader, task, 12, 1, Processes(MachineConfig(device="cpu")), train_gathered.SILENT)
    return next(iter(Batches(*rules).epoch(1)))


def losses_and_gradients(task: TrainingTask, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    task.zero_grad()
    losses = {name: term.mean for name, term in task.terms(task.views(batch)).items()}
    sum(losses.values()).backward()
    return losses, {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def assert_close(one: Mapping[str, Tensor], other: Mapping[str, Tensor], atol: float = ATOL) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=atol, msg=lambda text, n=name: f"{n}: {text}")


def bytes_kept(task: TrainingTask, batch: Batch) -> int:
    """What autograd holds for the way back once the items are encoded, parameters left out."""
    own = {parameter.data_ptr() for parameter in task.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        vectors = task._encode(batch.items)
    assert vectors.fused_UD.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("parts", [2, 5, 100])
def test_items_in_parts_give_losses_and_gradients_of_the_whole(task: TrainingTask, batch: Batch, parts: int) -> None:
    whole = losses_and_gradients(task, batch)
    task.item_parts = parts
    for expected, found in zip(whole, losses_and_gradients(task, batch), strict=True):
        assert_close(expected, found)
    assert batch.items.num_items < 100


def test_parts_keep_a_fraction_of_the_activations(task: TrainingTask, batch: Batch) -> None:
    whole = bytes_kept(task, batch)
    task.item_parts = 4
    assert bytes_kept(task, batch) < whole / 10  # inputs and vectors alone


def test_activations_that_are_not_kept_change_nothing(task: TrainingTask, batch: Batch) -> None:
    task.train()  # blocks in eval mode are left as they are
    whole, kept = losses_and_gradients(task, batch), bytes_kept(task, batch)
    checkpoint_activations(task.recommender.item_encoder)
    for expected, found in zip(whole, losses_and_gradients(task, batch), strict=True):
        assert_close(expected, found)
    assert bytes_kept(task, batch) < 0.8 * kept


@pytest.mark.parametrize("num_parts", [1, 3, 100])
def test_parts_hold_every_item_once_with_its_rows(batch: Batch, num_parts: int) -> None:
    parts, num_items = item_parts(batch.items, num_parts), batch.items.num_items
    assert len(parts) == num_parts
    assert torch.equal(torch.cat([part.row_U for part in parts])[:num_items], batch.items.row_U)
    for part in parts:
        assert part.num_items >= 1
        for field, rows in part.fields.items():
            has_U = torch.zeros(part.num_items, dtype=torch.bool)
            if part.has_U[field].any():
                has_U[rows.item_index_R.values] = True
                assert torch.equal(has_U, part.has_U[field])
            else:
                assert rows.item_index_R.values.tolist() == [part.num_items]  # a row that stands in
    with_text = [part.fields["text"] for part in parts if part.has_U["text"].any()]
    texts = [text for inputs in with_text for text in texts_of(inputs).values()]
    assert texts[: int(batch.items.has_U["text"].sum())] == list(texts_of(batch.items.fields["text"]).values())
    images = torch.cat([part.fields["image"].pixels_RCHW for part in parts if part.has_U[Modality.IMAGE].any()])
    num_images = int(batch.items.has_U[Modality.IMAGE].sum())
    assert torch.equal(images[:num_images], batch.items.fields["image"].pixels_RCHW)


class Forgetful(ItemEncoder):
    """Items by row, with half of every vector dropped."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.dropout = nn.Embedding(50, 6), nn.Dropout(0.5)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"table": self.table}

    def forward(self, items: ItemInputs) -> ItemVectors:
        return ItemVectors(self.dropout(self.table(items.row_U)).square())


def test_a_part_is_computed_again_with_the_same_dropout() -> None:
    encoder, rows = Forgetful(), torch.arange(20)
    items = ItemInputs(torch.zeros_like(rows), rows, {})
    torch.manual_seed(3)
    plain = torch.cat([encoder(part).fused_UD for part in item_parts(items, 4)])
    (expected,) = torch.autograd.grad(plain.sum(), encoder.table.weight)
    torch.manual_seed(3)
    checked = encode_in_parts(encoder, items, 4).fused_UD
    torch.rand(1)  # others draw random numbers in between
    (found,) = torch.autograd.grad(checked.sum(), encoder.table.weight)
    assert torch.equal(checked, plain)
    assert torch.equal(found, expected)
    assert 0 < (found == 0).sum() - 30 * 6 < 20 * 6


def test_layers_that_look_at_whole_batches_are_refused(workshop: Callable[..., Any]) -> None:
    shop = workshop()
    shop.task.recommender.item_encoder.norm = nn.BatchNorm1d(8)
    with pytest.raises(RecipeError, match="norm keeps statistics of whole batches"):
        shop.loop(accumulate={"parts": 2})


def test_checkpoints_without_blocks_that_learn_are_refused(workshop: Callable[..., Any]) -> None:
    with pytest.raises(RecipeError, match="no encoder with blocks learns"):
        workshop().loop(checkpoint_activations=True)


def test_plain_in_one_part_is_refused() -> None:
    with pytest.raises(ValueError, match="no effect in one part"):
        AccumulateConfig(mode="plain")


def test_counts_are_known_before_anything_is_encoded(task: TrainingTask, batch: Batch) -> None:
    expected = {name: term.count for name, term in task.terms(task.views(batch)).items()}
    counts = task.counts(batch)
    assert {name: count[1].item() for name, count in counts.items()} == {n: c.item() for n, c in expected.items()}
    assert len({c.item() for c in expected.values()}) > 1


def test_a_run_says_that_its_users_pass_in_parts(
    workshop: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    shop = workshop()
    Batches(DataConfig(), shop.sources, shop.reader, shop.task, 10, 1, shop.processes, shop.log, parts=3)
    assert "a step passes in 3 parts; negatives of a user are those of its part alone" in capsys.readouterr().out


def test_parts_too_small_for_a_user_each_are_refused(workshop: Callable[..., Any]) -> None:
    shop = workshop()
    with pytest.raises(RecipeError, match="the smallest of 3 parts of 0 users"):
        Batches(DataConfig(), shop.sources, shop.reader, shop.task, 2, 1, shop.processes, shop.log, parts=3)


def test_users_in_parts_share_one_update_with_negatives_of_their_own(workshop: Callable[..., Any]) -> None:
    looped, expected = workshop(), workshop()
    settings = {"batch_users": 10, "clip_norm": None, "optimizer": {"learning_rate": 0.1, "eps": 1.0}}
    config = TrainConfig.model_validate({"epochs": 1, **settings, "accumulate": {"mode": "plain", "parts": 3}})
    rules = (DataConfig(), looped.sources, looped.reader, looped.task, 10, 1, looped.processes, train_gathered.SILENT)
    batches = Batches(*rules, parts=3)
    Loop(config, looped.task, batches, looped.processes, looped.log).fit()

    optimizer = build_optimizer(expected.task, config.optimizer)
    expected.task.train()
    for batch in batches.epoch(1):
        assert [len(part.user_id) for part in (batch, *batch.more)] == [4, 3, 3]
        parts = [expected.task.terms(expected.task.views(part)) for part in (batch, *batch.more)]
        loss = sum(
            weight * sum(part[name].sum for part in parts) / sum(part[name].count for part in parts)
            for name, weight in expected.task.weights.items()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pairs = zip(looped.task.parameters(), expected.task.parameters(), strict=True)
    assert max((one - other).abs().max().item() for one, other in pairs) < 1e-6  # float32; measured 1e-7
