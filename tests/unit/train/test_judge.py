"""Judging epochs by the validation loss: which targets it counts, its value, and the epoch it chooses."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pmmrec.data.batches import DataConfig
from pmmrec.data.splits import split_of, splits
from pmmrec.errors import DataError, DivergenceError
from pmmrec.objectives.targets import Targets, TargetsConfig
from pmmrec.requests import DrawnNegatives, Requests
from pmmrec.train.callbacks import KeepBest, RankEvery, ValidationConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.judge import LossEvery, judge_epochs


def judge_of(
    shop: Any, data: DataConfig | None = None, **validation: Any
) -> tuple[RankEvery | LossEvery, ValidationConfig]:
    config = ValidationConfig.model_validate(validation)
    recipe = SimpleNamespace(seed=1, data=data or DataConfig(), train=TrainConfig(batch_users=16), validation=config)
    run: Any = SimpleNamespace(processes=shop.processes, log=shop.log)
    return judge_epochs(recipe, shop.sources, shop.reader, shop.task, run, shop.batches(16)), config


SPLITS = ({"type": "leave_one_out"}, {"type": "ratio"}, {"type": "ratio", "by": "time"})
KINDS = (("windows", "next"), ("windows", "last"), ("windows", "masked"), ("windows", "each"), ("interactions", "next"))
FIVE = DrawnNegatives(count=5)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("examples", "targets"), KINDS)
@pytest.mark.parametrize("num_users", [None, 7])
def test_the_targets_that_count_are_the_validation_targets(
    workshop, split: dict[str, Any], examples: str, targets: Targets, num_users: int | None
) -> None:
    shop, config = workshop(), TargetsConfig(type="any", targets=targets)
    (domain,) = shop.sources.domains
    of_recipe = split_of(splits.config(split), domain)
    shop.sources = SimpleNamespace(domains=(domain,), splits=(of_recipe,), names=[domain.name], told=[])
    shop.task = SimpleNamespace(requests=Requests.of(config.window, negatives=FIVE))
    judge, _ = judge_of(shop, DataConfig(examples=examples), judge="loss", users=num_users)
    assert isinstance(judge, LossEvery)
    holdout = of_recipe.holdout("validation", num_users)
    expected = Counter(
        (domain.user_ids[int(user)].as_py(), int(target))
        for query, user in enumerate(holdout.user_index)
        for target in holdout.targets(query)
    )
    counted: Counter[tuple[str, int]] = Counter()
    for batch in judge._batches.epoch(1):
        of_pass = batch.windows.passes[config.window]
        is_counted_BL = of_pass.is_target_BL.clone()
        if targets == "last":
            is_counted_BL[:, :-1] = False
        for user, position in is_counted_BL.nonzero().tolist():
            name = batch.user_id[user].removeprefix(f"{domain.name}/")
            query = [domain.user_ids[int(one)].as_py() for one in holdout.user_index].index(name)
            row_L = batch.items.row_U[of_pass.item_index_BL[user]][of_pass.is_valid_BL[user]].tolist()
            inputs = row_L[:-1] if targets in ("masked", "each") else row_L
            known = holdout.history(query).tolist()
            assert inputs == (known[-20:] if examples == "windows" else [])
            counted[name, int(batch.items.row_U[of_pass.target_index_BL[user, position]])] += 1
            drawn = set(batch.items.row_U[of_pass.negative_index_BLC[FIVE][user, position]].tolist())
            assert not drawn & {*known, *holdout.targets(query).tolist()}
        assert of_pass.is_masked_BL is None or torch.equal(of_pass.is_masked_BL, is_counted_BL)
    assert counted == expected


def test_training_and_validation_hold_one_catalogue(workshop) -> None:
    shop = workshop({"all": {"type": "catalogue_ce"}})
    batches = shop.batches(16)
    config = ValidationConfig(judge="loss")
    recipe = SimpleNamespace(seed=1, data=DataConfig(), train=TrainConfig(batch_users=16), validation=config)
    run: Any = SimpleNamespace(processes=shop.processes, log=shop.log)
    judged = judge_epochs(recipe, shop.sources, shop.reader, shop.task, run, batches)._batches
    moved = [one.to_device(next(iter(one.epoch(1))), torch.device("cpu")).items for one in (batches, judged)]
    assert moved[0].num_items == shop.sources.domains[0].num_items
    assert moved[0].row_U.data_ptr() == moved[1].row_U.data_ptr()


def test_objectives_count_no_training_item(workshop) -> None:
    terms = {"dap": {"type": "next_item"}, "bce": {"type": "bce"}, "all": {"type": "catalogue_ce", "targets": "last"}}
    shop = workshop(terms)
    judge, _ = judge_of(shop, judge="loss")
    assert isinstance(judge, LossEvery)
    counts = Counter[str]()
    for batch in judge._batches.epoch(1):
        assert int(batch.windows.has_next_BL.sum()) == len(batch.user_id)  # what alignment counts
        assert int(batch.windows.is_counted_BS.sum()) == len(batch.user_id)  # what item_contrast counts
        for name, figure in shop.task.counts(batch).items():
            counts[name] += int(figure[1])
    num_targets = len(shop.sources.splits[0].holdout("validation").target)
    assert counts == dict.fromkeys(terms, num_targets)


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


def test_a_loss_that_counts_nothing_judges_no_epoch(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = workshop()
    judge, _ = judge_of(shop, judge="loss")
    loop, figures = shop.loop(), dict.fromkeys(TERM_NAMES, torch.zeros(2))
    monkeypatch.setattr(loop, "measure", lambda _batch: figures)
    with pytest.raises(
        DataError, match=r"no example of validation has what objectives\.dap, objectives\.nid, .* compare"
    ):
        judge.epoch_ended(loop, 0)
    figures["rcl"] = torch.tensor([0.5, 1.0])
    judge.epoch_ended(loop, 0)
    assert loop.validation[0]["loss/rcl"] == 0.5


TERM_NAMES = ("dap", "nid", "rcl")


def test_ranking_is_the_default(workshop) -> None:
    judge, config = judge_of(workshop())
    assert isinstance(judge, RankEvery)
    assert config.judged_by == "ndcg@10"
