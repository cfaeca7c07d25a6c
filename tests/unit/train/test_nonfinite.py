"""A step whose loss or gradient is not finite changes nothing, is reported, and ends the run or is skipped."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Container
from typing import Literal

import pytest
import torch
from brittle import Brittle, make_brittle
from torch import Tensor, nn

from pmmrec.contracts import Term, Views
from pmmrec.errors import DivergenceError
from pmmrec.objectives import Objective
from pmmrec.requests import NextItems
from pmmrec.train.config import TrainConfig
from pmmrec.train.loop import Loop
from pmmrec.train.nonfinite import stop_if_weights_nonfinite
from pmmrec.train.optim import build_optimizer
from pmmrec.train.processes import joined
from pmmrec.train.schedule import build_scheduler
from pmmrec.train.snapshot import below, optimizer_tensors

ROW = 5
SCHEDULED = {"epochs": 3, "optimizer": {"learning_rate": 0.03, "warmup": 0.3, "schedule": "cosine"}}


def _copy(shop) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in shop.task.state_dict().items()}


def _item(shop) -> str:
    domain = shop.sources.domains[0]
    return f"{domain.name}/{domain.item_ids[ROW].as_py()}"


def _break_item(shop, poison: float = math.nan) -> None:
    with torch.no_grad():
        shop.task.recommender.item_encoder.item_table.vector.weight[ROW] = poison


def brittle(shop, forwards: Container[int], breaks: Literal["loss", "gradient"] = "loss") -> Brittle:
    """Let those forwards of the task, from 1, break."""
    numbers = itertools.count(1)
    return make_brittle(shop.task, lambda: next(numbers) in forwards, breaks)


def by_hand(shop, without: Container[int], **settings) -> dict[str, Tensor]:
    """Train without the loop, and without an update in some steps; what the optimiser remembers."""
    config = TrainConfig.model_validate({"batch_users": 16, "epochs": 1, **settings})
    batches = shop.batches(config.batch_users)
    optimizer = build_optimizer(shop.task, config.optimizer)
    scheduler = build_scheduler(
        optimizer, config.optimizer, config.epochs * batches.steps_per_epoch, batches.steps_per_epoch
    )
    shop.task.train()
    steps = itertools.count(1)
    for epoch in range(1, config.epochs + 1):
        for batch in batches.epoch(epoch):
            optimizer.zero_grad()
            terms = shop.task.terms(shop.task.views(batch))
            torch.stack([shop.task.weights[name] * term.mean for name, term in terms.items()]).sum().backward()
            torch.nn.utils.clip_grad_norm_(shop.task.parameters(), config.clip_norm)
            if next(steps) not in without:
                optimizer.step()
            scheduler.step()
    return dict(optimizer_tensors(shop.task, optimizer))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_broken_item_is_named_and_no_weight_moves(workshop, poison: float) -> None:
    shop = workshop()
    _break_item(shop, poison)
    before = _copy(shop)
    told = f"^step 1: loss of dap, nid, rcl is not finite; first seen in vectors of items {_item(shop)}; no update"
    with pytest.raises(DivergenceError, match=told):
        shop.loop(batch_users=40).fit()
    torch.testing.assert_close(_copy(shop), before, rtol=0, atol=0, equal_nan=True)


class _PoisonAfter:
    """Breaks one item once an epoch is over."""

    def __init__(self, shop, epoch: int) -> None:
        self._shop, self._epoch = shop, epoch

    def epoch_ended(self, _loop: Loop, epoch: int) -> None:
        if epoch == self._epoch:
            _break_item(self._shop)


def test_the_step_that_broke_is_named(workshop) -> None:
    shop = workshop()
    with pytest.raises(DivergenceError, match=rf"^step 2: .* of items {_item(shop)};"):
        shop.loop(batch_users=40, epochs=3, callbacks=[_PoisonAfter(shop, 1)]).fit()
    assert [event["step"] for event in shop.events("train")] == [1]


def test_users_are_named_where_every_item_is_sound(workshop) -> None:
    shop = workshop()
    with torch.no_grad():
        next(iter(shop.task.recommender.user_encoder.parameters())).fill_(math.nan)
    with pytest.raises(DivergenceError, match=r"first seen in states of users boutique/\S+, .* and 35 more;"):
        shop.loop(batch_users=40).fit()


def test_a_broken_gradient_of_a_sound_loss_makes_no_update(workshop) -> None:
    shop = workshop()
    brittle(shop, {1}, "gradient")
    before = _copy(shop)
    with pytest.raises(DivergenceError, match="step 1: a gradient is not finite, every loss is; no update was made"):
        shop.loop(batch_users=40, clip_norm=None).fit()
    torch.testing.assert_close(_copy(shop), before, rtol=0, atol=0)


@pytest.mark.parametrize("breaks", ["loss", "gradient"])
def test_skipping_a_step_equals_a_step_that_never_updated(workshop, breaks: str) -> None:
    shop, expected = workshop(), workshop()
    brittle(shop, {2, 5}, breaks)
    loop = shop.loop(on_nonfinite={"skip": 2}, **SCHEDULED)
    loop.fit()
    remembered = by_hand(expected, without={2, 5}, **SCHEDULED)
    torch.testing.assert_close(_copy(shop), _copy(expected), rtol=0, atol=0)
    torch.testing.assert_close(below(loop.snapshot().tensors, "optimizer"), remembered, rtol=0, atol=0)
    assert {int(value) for name, value in remembered.items() if name.endswith(":step")} == {loop.step - 2}


def test_one_step_more_than_may_be_left_out_ends_the_run(workshop, capsys: pytest.CaptureFixture[str]) -> None:
    shop = workshop()
    brittle(shop, {2, 4})
    told = r"^step 4: loss of brittle is not finite; first seen in losses of process 0 of 1; no update.*skip=2"
    with pytest.raises(DivergenceError, match=told):
        shop.loop(on_nonfinite={"skip": 1}, epochs=3).fit()
    assert "warning: step 2: loss of brittle is not finite; " in capsys.readouterr().err
    assert [(event["step"], event["skipped"]) for event in shop.events("nonfinite")] == [(2, 1), (4, 1)]


@pytest.mark.parametrize("log_every", [1, 100])
def test_log_lines_leave_a_skipped_step_out(workshop, log_every: int) -> None:
    shop = workshop()
    brittle(shop, {2})
    shop.loop(on_nonfinite={"skip": 1}, log_every=log_every).fit()
    batches, lines = list(shop.batches(16).epoch(1)), shop.events("train")
    assert [line["step"] for line in lines] == [1, 3]
    assert [line["users"] for line in lines] == [len(batches[step].user_id) for step in (0, 2)]
    assert all(math.isfinite(line["loss"]) for line in lines)


def test_a_broken_last_step_is_reported_before_the_epoch_ends(workshop) -> None:
    shop = workshop()
    brittle(shop, {3})
    with pytest.raises(DivergenceError, match=r"^step 3: "):
        shop.loop(log_every=100).fit()
    assert not shop.events("epoch")


def test_all_that_was_in_the_step_is_written_down(workshop) -> None:
    shop = workshop()
    _break_item(shop)
    with pytest.raises(DivergenceError, match=r"; all that was in it is in .*nonfinite-00000001\.json\. Lower"):
        shop.loop(batch_users=40).fit()
    written = json.loads((shop.folder / "nonfinite-00000001.json").read_text(encoding="utf-8"))
    (told,), (batch,) = written["processes"], shop.batches(40).epoch(1)
    assert (written["step"], told["process"], told["broken_items"]) == (1, 0, [_item(shop)])
    assert told["losses"] == dict.fromkeys(("dap", "nid", "rcl"), "nan")
    assert told["users"] == list(batch.user_id)
    assert told["items"] == shop.batches(40).item_names(batch.items.domain_U, batch.items.row_U)
    (event,) = shop.events("nonfinite")
    assert (event["items"], event["losses"]) == ([_item(shop)], ["dap", "nid", "rcl"])


def test_a_step_is_reported_even_if_its_file_cannot_be_written(workshop, capsys: pytest.CaptureFixture[str]) -> None:
    shop = workshop()
    brittle(shop, {1})
    (shop.folder / "nonfinite-00000001.json").mkdir()
    with pytest.raises(DivergenceError, match=r"^step 1: .*; no update was made\. Lower"):
        shop.loop().fit()
    assert "nonfinite-00000001.json: cannot be written" in capsys.readouterr().err


def test_one_broken_part_holds_back_the_whole_step(workshop) -> None:
    shop = workshop()
    brittle(shop, {2})
    before = _copy(shop)
    shop.loop(batch_users=40, accumulate={"mode": "plain", "parts": 2}, on_nonfinite={"skip": 1}).fit()
    torch.testing.assert_close(_copy(shop), before, rtol=0, atol=0)
    (told,) = json.loads((shop.folder / "nonfinite-00000001.json").read_text(encoding="utf-8"))["processes"]
    assert len(set(told["users"])) == 40  # of both parts


class _Normed(Objective):
    """Its layer meets what is broken before any loss does."""

    def __init__(self, brittle: Brittle) -> None:
        super().__init__()
        self._is_broken = lambda: brittle.is_broken
        self.norm = nn.BatchNorm1d(8)

    def forward(self, views: Views) -> Term:
        hidden_XD = views.states[NextItems()].hidden_BLD.flatten(0, 1)
        return Term(self.norm(hidden_XD * math.nan if self._is_broken() else hidden_XD).square().sum(), torch.ones(()))


def test_batch_statistics_ignore_a_broken_step(workshop) -> None:
    shop = workshop()
    normed = _Normed(brittle(shop, {2}))
    shop.task.objectives["normed"], shop.task.weights["normed"] = normed, 1.0
    shop.loop(on_nonfinite={"skip": 1}).fit()
    assert int(normed.norm.num_batches_tracked) == 2
    assert normed.norm.running_mean.isfinite().all()


def test_with_a_scaler_broken_losses_are_skipped_and_overflows_are_not_reported(
    workshop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As fp16 trains, with torch's own scaler; Accelerate makes one on a GPU alone."""
    shop = workshop()
    brittle(shop, {2})
    accelerator, scaler = shop.processes.accelerator, torch.amp.GradScaler("cpu", init_scale=2.0**127)
    monkeypatch.setattr(accelerator.state, "_mixed_precision", "fp16")
    monkeypatch.setattr(accelerator, "scaler", scaler)
    loop = shop.loop(on_nonfinite={"skip": 1}, epochs=4)
    loop.fit()
    num_left_out = 127 - int(math.log2(scaler.get_scale()))
    made = {int(value) for name, value in loop.snapshot().tensors.items() if name.endswith(":step")}
    assert made == {loop.step - num_left_out}
    assert 1 < num_left_out < loop.step
    assert [event["step"] for event in shop.events("nonfinite")] == [2]
    assert all(tensor.isfinite().all() for tensor in _copy(shop).values())


def test_a_weight_that_an_update_made_nonfinite_is_named(workshop) -> None:
    """The last step of an epoch has no next loss that would notice; ranking must not be the first to meet it."""
    shop = workshop()
    stop_if_weights_nonfinite(shop.task, shop.processes, step=7)
    _break_item(shop, math.inf)
    told = r"^step 7: its update left recommender\.item_encoder\.item_table\.vector\.weight not finite"
    with pytest.raises(DivergenceError, match=told):
        stop_if_weights_nonfinite(shop.task, shop.processes, step=7)


def test_divergence_has_an_exit_code_of_its_own() -> None:
    assert DivergenceError.exit_code == 1


def test_many_names_are_shown_as_five_and_a_number() -> None:
    assert joined(["a", "b"]) == "a, b"
    assert joined(list("abcdefg")) == "a, b, c, d, e and 2 more"
