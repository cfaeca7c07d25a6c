"""The loop against the same training written out step by step."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from pmmrec.contracts import Term, Views
from pmmrec.errors import MachineError, RecipeError
from pmmrec.objectives import Objective
from pmmrec.train import loop as loop_file
from pmmrec.train.callbacks import KeepBest, RankEvery, ValidationConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.loop import Loop
from pmmrec.train.optim import build_optimizer
from pmmrec.train.schedule import build_scheduler

EPS_1 = {"learning_rate": 0.1, "eps": 1.0}  # AdamW forgets the size of a gradient unless eps is large


def by_hand(shop, **settings) -> list[dict[str, tuple[float, float]]]:
    """Train the task of a workshop without the loop: sums and counts of each step."""
    config = TrainConfig.model_validate({"batch_users": 16, "epochs": 1, **settings})
    batches = shop.batches(config.batch_users)
    optimizer = build_optimizer(shop.task, config.optimizer)
    scheduler = build_scheduler(
        optimizer, config.optimizer, config.epochs * batches.steps_per_epoch, batches.steps_per_epoch
    )
    shop.task.train()
    steps = []
    for epoch in range(1, config.epochs + 1):
        for batch in batches.epoch(epoch):
            terms = shop.task.terms(shop.task.views(batch))
            steps.append({name: (term.sum.item(), term.count.item()) for name, term in terms.items()})
            loss = sum(shop.task.weights[name] * term.sum / term.count for name, term in terms.items())
            optimizer.zero_grad()
            loss.backward()
            if config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(shop.task.parameters(), config.clip_norm)
            optimizer.step()
            scheduler.step()
    return steps


def _difference(first, second) -> float:
    pairs = zip(first.task.parameters(), second.task.parameters(), strict=True)
    return max((one - other).abs().max().item() for one, other in pairs)


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_the_loop_is_the_training_written_out(workshop, clip_norm: float | None) -> None:
    settings = {"epochs": 2, "clip_norm": clip_norm, "optimizer": {**EPS_1, "schedule": "cosine", "warmup": 0.2}}
    looped, expected = workshop(), workshop()
    looped.loop(**settings).fit()
    by_hand(expected, **settings)
    assert _difference(looped, expected) == pytest.approx(0, abs=1e-6)  # float32; measured 0


def test_clipping_takes_effect(workshop) -> None:
    clipped, free = workshop(), workshop()
    clipped.loop(clip_norm=0.01, optimizer=EPS_1).fit()
    free.loop(clip_norm=None, optimizer=EPS_1).fit()
    assert _difference(clipped, free) > 1e-3


def test_every_line_holds_the_sum_over_its_steps_divided_by_their_count(workshop) -> None:
    shop, expected = workshop(), workshop()
    shop.loop(log_every=100).fit()
    steps = by_hand(expected)
    first, rest = shop.events("train")  # step 1, then all others at the end of the epoch
    assert (first["step"], rest["step"]) == (1, len(steps))
    for name in ("dap", "nid", "rcl"):
        assert first[name] == pytest.approx(steps[0][name][0] / steps[0][name][1], rel=1e-5)
        sums, counts = zip(*(step[name] for step in steps[1:]), strict=True)
        assert rest[name] == pytest.approx(sum(sums) / sum(counts), rel=1e-5)
    assert rest["loss"] == pytest.approx(rest["dap"] + 0.5 * rest["nid"] + 2 * rest["rcl"])


def test_lines_count_users_slots_and_distinct_items(workshop) -> None:
    shop = workshop()
    shop.loop().fit()
    batches = list(shop.batches(16).epoch(1))
    events = shop.events("train")
    assert [event["users"] for event in events] == [len(batch.user_id) for batch in batches]
    assert [event["slots"] for event in events] == [int(batch.windows.is_valid_BS.sum()) for batch in batches]
    assert [event["items_encoded"] for event in events] == [batch.items.num_items for batch in batches]
    assert sum(event["users"] for event in events) == 40


def test_the_rate_in_a_line_is_the_one_its_step_used(workshop) -> None:
    shop = workshop()
    shop.loop(epochs=2, batch_users=20, optimizer={"learning_rate": 0.8, "warmup": 0.75}).fit()
    assert [event["learning_rate"] for event in shop.events("train")] == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_gradient_norms_of_each_objective_stand_before_the_first_step(workshop) -> None:
    shop = workshop()
    shop.loop().fit()
    (event,) = shop.events("gradient_norm")
    assert event["step"] == 0
    assert all(event[name] > 0 for name in ("dap", "nid", "rcl"))


def test_no_epochs_leave_the_weights_as_they_are(workshop) -> None:
    shop, fresh = workshop(), workshop()
    loop = shop.loop(epochs=0)
    loop.fit()
    assert _difference(shop, fresh) == 0
    assert loop.step == 0


def test_negatives_of_each_process_ask_for_as_many_processes_as_before(workshop) -> None:
    state = workshop().loop(gather=False).snapshot()
    of_two = dataclasses.replace(state, facts={**state.facts, "world": 2})
    with pytest.raises(RecipeError, match=r"train\.gather: false .* begun on 2, not 1: go on with 2"):
        workshop().loop(gather=False).restore(of_two)
    workshop().loop(gather=False).restore(state)
    workshop().loop().restore(of_two)


def test_the_whole_state_is_that_of_the_task(workshop) -> None:
    shop = workshop()
    state = shop.loop().state_dict()
    own = shop.task.state_dict()
    assert state.keys() == own.keys()
    assert all(torch.equal(state[name], own[name]) for name in own)


class _Kept:
    """What KeepBest saved: epoch and a copy of the weights."""

    def __init__(self) -> None:
        self.saved: list[tuple[int, dict[str, Tensor]]] = []

    def __call__(self, loop: Loop) -> None:
        self.saved.append((max(loop.validation), {name: t.clone() for name, t in loop.state_dict().items()}))


def _judged(shop, kept: _Kept, patience: int, **settings) -> Loop:
    config = ValidationConfig(metric="ndcg@10", patience=patience)
    rank = RankEvery(config, shop.reader, shop.sources.splits, shop.sources.names)
    loop = shop.loop(callbacks=[rank, KeepBest(config, kept)], **settings)
    loop.fit()
    return loop


def _values(loop: Loop) -> Sequence[float]:
    return [loop.validation[epoch]["ndcg@10"] for epoch in sorted(loop.validation)]


def test_the_best_epoch_is_kept_and_no_other(workshop) -> None:
    shop, kept = workshop(), _Kept()
    loop = _judged(shop, kept, patience=20, epochs=8, optimizer={"learning_rate": 0.03})
    values = _values(loop)
    rising = [epoch for epoch, value in enumerate(values) if all(value > before for before in values[:epoch])]
    assert [epoch for epoch, _ in kept.saved] == rising
    assert len(rising) > 1
    assert loop.best == (rising[-1], max(values))
    epoch, best_weights = kept.saved[-1]
    assert epoch == loop.best[0]
    shop.task.load_state_dict(best_weights)
    again = workshop()
    again.task.load_state_dict(best_weights)
    assert _values(_judged(again, _Kept(), patience=1, epochs=0)) == [max(values)]


def test_training_ends_after_patience_epochs_without_a_better_value(workshop) -> None:
    shop, kept = workshop(), _Kept()
    loop = _judged(shop, kept, patience=2, epochs=9, optimizer={"learning_rate": 1e-12})  # no rank ever moves
    assert sorted(loop.validation) == [0, 1, 2, 3]  # epochs 2 and 3 are no better than epoch 1
    assert loop.best[0] == 0
    assert len(kept.saved) == 1
    assert [event["epoch"] for event in shop.events("validation")] == [0, 1, 2, 3]


def test_weights_before_training_that_rank_well_do_not_use_up_the_patience(workshop) -> None:
    config = ValidationConfig(metric="ndcg@10", patience=2)
    values = [0.9, 0.1, 0.2, 0.15, 0.3, 0.25, 0.3]  # by epoch; after epoch 4 none is better

    class Ranks:
        def epoch_ended(self, loop: Loop, epoch: int) -> None:
            loop.validation[epoch] = {"ndcg@10": values[epoch]}

    kept = _Kept()
    loop = workshop().loop(callbacks=[Ranks(), KeepBest(config, kept)], epochs=9)
    loop.fit()
    assert max(loop.validation) == 6
    assert loop.best == (0, 0.9)
    assert [epoch for epoch, _ in kept.saved] == [0]


def test_patience_counts_the_epochs_of_the_last_stage_alone(workshop) -> None:
    stages = [{"epochs": 1, "learns": ["user_encoder"]}, {"epochs": 2, "learns": ["item_table"]}, {}]
    loop = _judged(
        workshop(), _Kept(), patience=2, epochs=9, stages=stages, optimizer={"learning_rate": 1e-12}
    )  # no rank ever moves
    assert sorted(loop.validation) == [0, 1, 2, 3, 4, 5]
    assert loop.best[0] == 0


@pytest.mark.parametrize(("minutes", "epochs"), [(1e-9, 1), (60.0, 3)])
def test_training_ends_before_an_epoch_that_would_pass_its_minutes(workshop, minutes: float, epochs: int) -> None:
    shop = workshop()
    loop = _judged(shop, _Kept(), patience=9, epochs=3, minutes=minutes)
    assert sorted(loop.validation) == list(range(epochs + 1))  # one epoch is always trained
    assert loop.should_stop == (epochs < 3)


def test_time_in_training_leaves_validation_out(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    rest_s = 1e6
    clock = SimpleNamespace(rested_s=0.0, monotonic=lambda: time.monotonic() + clock.rested_s)
    monkeypatch.setattr(loop_file, "time", clock)

    class Slow:
        def epoch_ended(self, loop: Loop, epoch: int) -> None:
            clock.rested_s += rest_s

    loop = workshop().loop(callbacks=[Slow()], epochs=1)
    loop.fit()
    assert 0 < loop.training_s < rest_s


class _Greedy(Objective):
    """Asks for more memory than there is."""

    def forward(self, views: Views) -> Term:
        if torch.is_grad_enabled():
            raise torch.OutOfMemoryError("out of memory")
        return Term(views.items.fused_UD.sum(), torch.ones(()))


def test_a_device_without_memory_says_what_to_lower(workshop) -> None:
    shop = workshop()
    loop = shop.loop(batch_users=20)
    shop.task.objectives["greedy"], shop.task.weights["greedy"] = _Greedy(), 1.0
    with pytest.raises(
        MachineError, match=r"^step 1: cpu is out of memory at 20 users, .*train\.batch_users \(now 20\)"
    ):
        loop.fit()
