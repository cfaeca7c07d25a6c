"""Judging epochs by the validation loss: which windows it reads, its value, and the epoch it chooses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from pmmrec.data.batches import DataConfig
from pmmrec.data.splits import split_of, splits
from pmmrec.data.validation_windows import ValidationWindows
from pmmrec.data.windows import WindowConfig, WindowIndex
from pmmrec.errors import DivergenceError
from pmmrec.train.callbacks import KeepBest, RankEvery, ValidationConfig
from pmmrec.train.judge import LossEvery, judge_epochs
from pmmrec.train.loop import TrainConfig


def judge_of(shop: Any, **validation: Any) -> tuple[RankEvery | LossEvery, ValidationConfig]:
    config = ValidationConfig.model_validate(validation)
    recipe = SimpleNamespace(seed=1, data=DataConfig(), train=TrainConfig(batch_users=16), validation=config)
    run: Any = SimpleNamespace(processes=shop.processes, log=shop.log)
    return judge_epochs(recipe, shop.sources, shop.reader, shop.task, run), config


@pytest.mark.parametrize("split", [{"type": "leave_one_out"}, {"type": "ratio"}, {"type": "ratio", "by": "time"}])
@pytest.mark.parametrize("num_users", [None, 7])
def test_it_reads_training_and_validation_items_of_users_with_validation_targets(
    workshop, split: dict[str, Any], num_users: int | None
) -> None:
    (domain,) = workshop().sources.domains
    of_recipe = split_of(splits.config(split), domain)
    windows, holdout = ValidationWindows(of_recipe, num_users), of_recipe.holdout("validation", num_users)
    test = of_recipe.holdout("test")
    for user in range(domain.num_users):
        read = windows.train(user).tolist()
        if user not in holdout.user_index:
            assert read == []
            continue
        query, last = holdout.user_index.tolist().index(user), test.user_index.tolist().index(user)
        assert sorted(read) == sorted([*holdout.history(query).tolist(), *holdout.targets(query).tolist()])
        assert read == test.history(last).tolist()
    index = WindowIndex(windows, WindowConfig(policy="latest"))
    assert index.num_examples == holdout.num_queries


def test_windows_of_leave_one_out_end_with_the_validation_item(workshop) -> None:
    shop = workshop()
    windows = ValidationWindows(shop.sources.splits[0])
    index, holdout = WindowIndex(windows, WindowConfig(policy="latest")), shop.sources.splits[0].holdout("validation")
    last = [index.items(window, np.random.default_rng(0))[-1] for window in range(index.num_examples)]
    assert last == holdout.target.tolist()


def test_the_loss_is_that_of_its_batches_and_changes_nothing(workshop) -> None:
    shop = workshop()
    judge, _ = judge_of(shop, judge="loss")
    assert isinstance(judge, LossEvery)
    loop = shop.loop()
    before = {name: tensor.clone() for name, tensor in shop.task.state_dict().items()}
    shop.task.train()
    for epoch in range(2):
        judge.epoch_ended(loop, epoch)
    assert shop.task.training
    assert all(parameter.grad is None for parameter in shop.task.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in shop.task.state_dict().items())
    assert loop.validation[0] == loop.validation[1]
    sums: dict[str, float] = dict.fromkeys(shop.task.weights, 0.0)
    counts = dict.fromkeys(shop.task.weights, 0.0)
    shop.task.eval()
    for batch in judge._batches.epoch(1):
        for name, (total, count) in shop.task(batch).items():
            if name in sums:
                sums[name] += total.item()
                counts[name] += count.item()
    expected = {name: sums[name] / counts[name] for name in sums}
    assert loop.validation[0]["loss"] == pytest.approx(
        sum(weight * expected[name] for name, weight in shop.task.weights.items()), rel=1e-6
    )  # sums in float32; measured 1e-7
    for name, value in expected.items():
        assert loop.validation[0][f"loss/{name}"] == pytest.approx(value, rel=1e-6)
    assert [event["mean"] for event in shop.events("validation")] == [loop.validation[0]] * 2


def test_the_epoch_with_the_lowest_loss_is_kept(workshop) -> None:
    shop, kept = workshop(), []
    judge, config = judge_of(shop, judge="loss", patience=20)
    keep = KeepBest(config, lambda loop: kept.append(max(loop.validation)))
    loop = shop.loop(callbacks=[judge, keep], epochs=4, optimizer={"learning_rate": 0.03})
    loop.fit()
    values = [loop.validation[epoch]["loss"] for epoch in sorted(loop.validation)]
    assert kept == [epoch for epoch, value in enumerate(values) if all(value < before for before in values[:epoch])]
    assert len(kept) > 1
    assert loop.best == (kept[-1], min(values))


def test_a_loss_that_is_not_finite_ends_the_run(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = workshop()
    judge, _ = judge_of(shop, judge="loss")
    loop = shop.loop()
    monkeypatch.setattr(loop, "measure", lambda _batch: dict.fromkeys(TERM_NAMES, torch.tensor([torch.nan, 1.0])))
    with pytest.raises(DivergenceError, match="every weight is finite, the validation loss is not"):
        judge.epoch_ended(loop, 1)


TERM_NAMES = ("dap", "nid", "rcl")


def test_ranking_is_the_default(workshop) -> None:
    judge, config = judge_of(workshop())
    assert isinstance(judge, RankEvery)
    assert config.judged_by == "ndcg@10"
