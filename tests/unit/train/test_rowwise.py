"""Tables of ids that learn by rows: against Adam and AdamW written out, torch's own, and a run that was stopped."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.train import rowwise
from pmmrec.train.optim import OptimizerConfig, build_optimizer
from pmmrec.train.rowwise import RowwiseAdam, dense_gradients
from pmmrec.train.syncs import HostSyncs

RULES: dict[str, Any] = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-3, "weight_decay": 0.2}
BY_ROWS = {"optimizer": {"tables": "rows", "learning_rate": 0.05, "weight_decay": 0.1}}
ADAM_BY_ROWS = {
    "optimizer": BY_ROWS["optimizer"] | {"type": "adam", "schedule": {"type": "exponential", "factor": 0.5}}
}


def table_of(*, sparse: bool, dtype: torch.dtype = torch.float64) -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(6, 3, sparse=sparse, dtype=dtype)


def loss_of(table: nn.Embedding, rows: list[int], step: int) -> Tensor:
    """A loss whose gradient has both signs and changes from step to step; rows may occur twice."""
    target_KD = torch.sin(torch.arange(3 * len(rows), dtype=table.weight.dtype) + step).view(-1, 3)
    return (table(torch.tensor(rows)) - target_KD).square().sum()


def adam_by_rows(steps: list[list[int]], *, is_decoupled: bool, **rules: Any) -> Tensor:
    """Adam or AdamW as printed, number by number; rows that a step does not read are left alone."""
    table = table_of(sparse=False)
    weight = table.weight.detach().clone()
    (beta1, beta2), mean, square = rules["betas"], torch.zeros_like(weight), torch.zeros_like(weight)
    for step, rows in enumerate(steps, start=1):
        with torch.no_grad():
            table.weight.copy_(weight)
        (gradient,) = torch.autograd.grad(loss_of(table, rows, step), table.weight)
        for row in set(rows):
            for place in range(3):
                g = gradient[row, place] + (0 if is_decoupled else rules["weight_decay"] * weight[row, place])
                mean[row, place] = beta1 * mean[row, place] + (1 - beta1) * g
                square[row, place] = beta2 * square[row, place] + (1 - beta2) * g**2
                m, v = mean[row, place] / (1 - beta1**step), square[row, place] / (1 - beta2**step)
                decay = rules["lr"] * rules["weight_decay"] * is_decoupled
                weight[row, place] = weight[row, place] * (1 - decay) - rules["lr"] * m / (v**0.5 + rules["eps"])
    return weight


def trained(table: nn.Embedding, optimizer: torch.optim.Optimizer, steps: list[list[int]]) -> Tensor:
    for step, rows in enumerate(steps, start=1):
        optimizer.zero_grad()
        loss_of(table, rows, step).backward()
        optimizer.step()
    return table.weight.detach()


def by_rows(table: nn.Embedding, *, is_decoupled: bool = True, **rules: Any) -> RowwiseAdam:
    return RowwiseAdam([{"params": [table.weight]}], {}, decoupled_weight_decay=is_decoupled, **rules)


@pytest.mark.parametrize("is_decoupled", [True, False], ids=["adamw", "adam"])
def test_rows_that_are_read_learn_by_adam_and_others_stay(is_decoupled: bool) -> None:
    steps = [[0, 1, 1], [1, 4], [4, 0], [1]]
    table = table_of(sparse=True)
    before = table.weight.detach().clone()
    after = trained(table, by_rows(table, is_decoupled=is_decoupled, **RULES), steps)
    expected = adam_by_rows(steps, is_decoupled=is_decoupled, **RULES)
    torch.testing.assert_close(after, expected, rtol=0, atol=1e-13)  # measured 3e-17
    assert torch.equal(after[[2, 3, 5]], before[[2, 3, 5]])


@pytest.mark.parametrize("is_decoupled", [True, False], ids=["adamw", "adam"])
def test_it_is_torchs_optimizer_where_every_row_is_read(is_decoupled: bool) -> None:
    steps = [[0, 1, 2, 3, 4, 5], [5, 4, 3, 3, 2, 1, 0]] * 3
    sparse, dense = table_of(sparse=True), table_of(sparse=False)
    whole = (torch.optim.AdamW if is_decoupled else torch.optim.Adam)([{"params": [dense.weight]}], fused=True, **RULES)
    ours = trained(sparse, by_rows(sparse, is_decoupled=is_decoupled, **RULES), steps)
    torch.testing.assert_close(ours, trained(dense, whole, steps), rtol=0, atol=1e-13)  # measured 3e-16


def test_it_is_torchs_sparse_adam_without_decay() -> None:
    steps = [[0, 1, 1], [1, 4], [4, 0]]
    ours, theirs, rules = table_of(sparse=True), table_of(sparse=True), RULES | {"weight_decay": 0.0}
    reference = torch.optim.SparseAdam([theirs.weight], lr=0.1, betas=(0.8, 0.9), eps=1e-12)
    torch.testing.assert_close(
        trained(ours, by_rows(ours, **rules | {"eps": 1e-12}), steps),
        trained(theirs, reference, steps),
        rtol=0,
        atol=1e-9,
    )  # SparseAdam adds eps before it corrects the bias; measured 2e-12


def test_a_step_that_is_held_back_changes_nothing() -> None:
    table = table_of(sparse=True)
    optimizer = by_rows(table, **RULES)
    trained(table, optimizer, [[0, 1]])
    before = [table.weight.detach().clone(), *(value.clone() for value in optimizer.state[table.weight].values())]
    optimizer.found_inf = torch.ones(1)
    loss_of(table, [1, 2], 2).backward()
    optimizer.step()
    after = [table.weight.detach(), *optimizer.state[table.weight].values()]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_gradients_of_tables_are_clipped_with_all_others() -> None:
    sparse, dense, layer = table_of(sparse=True), table_of(sparse=False), nn.Linear(3, 1, dtype=torch.float64)
    norms = []
    for table in (sparse, dense):
        layer.zero_grad()
        (loss_of(table, [0, 1, 1], 1) + layer(table(torch.tensor([2]))).sum()).backward()
        parameters = dense_gradients([table.weight, *layer.parameters()])
        norms.append(nn.utils.clip_grad_norm_(list(parameters), 0.5))
    torch.testing.assert_close(norms[0], norms[1], rtol=0, atol=1e-14)
    torch.testing.assert_close(sparse.weight.grad.to_dense(), dense.weight.grad, rtol=0, atol=1e-15)


def test_a_run_by_rows_leaves_items_alone_that_no_step_reads(workshop) -> None:
    terms = {"dap": {"type": "next_item"}}
    shop, fresh = workshop(terms), workshop(terms)
    loop = shop.loop(batch_users=4, **BY_ROWS)
    batch = next(iter(shop.batches(4).epoch(1)))
    shop.task.train()
    loop._train_step(batch, batch)
    before, after = (s.task.recommender.item_encoder.item_table.vector.weight for s in (fresh, shop))
    changed = (before != after).any(dim=1).nonzero()[:, 0]
    assert changed.tolist() == sorted(batch.items.row_U.tolist())
    assert len(changed) < len(before)


@pytest.mark.parametrize("settings", [BY_ROWS, ADAM_BY_ROWS], ids=["adamw", "adam"])
def test_a_run_by_rows_goes_on_bit_for_bit_and_may_go_on_as_a_whole(workshop, settings: dict[str, Any]) -> None:
    one, first, second, whole = (workshop() for _ in range(4))
    one.loop(epochs=2, **settings).fit()
    stopped = first.loop(epochs=2, **settings)
    stopped.epoch = 1
    stopped._train_epoch()
    state = stopped.snapshot()
    resumed = second.loop(epochs=2, **settings)
    resumed.restore(dataclasses.replace(state, facts={**state.facts, "epoch": 2, "is_trained": False}))
    resumed._fit()
    assert all(torch.equal(a, b) for a, b in zip(one.task.parameters(), second.task.parameters(), strict=True))
    other = whole.loop(epochs=2, optimizer=settings["optimizer"] | {"tables": "whole"})
    other.restore(dataclasses.replace(state, facts={**state.facts, "epoch": 2, "is_trained": False}))
    other._fit()


def test_large_tables_learn_by_rows_unless_every_step_reads_them_all(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(terms: dict[str, Any] | None = None, **settings: Any) -> list[str]:
        return list(build_optimizer(workshop(terms).task, OptimizerConfig(**settings), Spread.ONE).tables)

    assert chosen() == []
    assert chosen(tables="rows") == ["item_table"]
    monkeypatch.setattr(rowwise, "LARGE", 30)
    assert chosen() == ["item_table"]
    assert chosen(tables="whole") == []
    assert chosen({"all": {"type": "catalogue_ce"}}) == []
    assert build_optimizer(workshop().task, OptimizerConfig(), Spread.DDP).tables == {}


def test_rows_are_refused_where_they_have_no_effect(workshop, reading) -> None:
    rows = OptimizerConfig(tables="rows")
    with pytest.raises(RecipeError, match=r"tables: rows has no effect: every step reads the whole catalogue"):
        build_optimizer(workshop({"all": {"type": "catalogue_ce"}}).task, rows)
    with pytest.raises(RecipeError, match="the model has no table of ids that learns"):
        build_optimizer(reading.task, rows)
    for spread in (Spread.DDP, Spread.FSDP2, Spread.ZERO1):
        with pytest.raises(RecipeError, match=f"under {spread.value} gradients are exchanged as whole tensors"):
            build_optimizer(workshop().task, rows, spread)


def test_a_step_by_rows_waits_for_the_rows_of_one_table_alone(workshop) -> None:
    shop = workshop()
    loop, syncs = shop.loop(batch_users=8, **BY_ROWS), HostSyncs()
    shop.task.train()
    batch = next(iter(shop.batches(8).epoch(1)))
    with syncs:
        loop._train_step(batch, batch)
    assert syncs.count == 1, syncs.found
