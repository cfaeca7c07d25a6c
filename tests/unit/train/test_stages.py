"""Stages: what learns in which epochs, against training by hand, over a stop, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.train.config import TrainConfig
from pmmrec.train.optim import all_parameter_paths, build_optimizer
from pmmrec.train.stages import StageConfig, Stages, freeze_for_good, learning_in_one, refuse_frozen_at_random

FIRST, USERS = "user_encoder.blocks", "user_encoder"
STAGES: list[dict[str, Any]] = [{"epochs": 1, "learns": ["item_table"]}, {"epochs": 1, "frozen": [FIRST]}, {}]
RULES: dict[str, Any] = {"epochs": 3, "optimizer": {"learning_rate": 0.01}, "clip_norm": 0.5}


def values(task: Any) -> dict[str, Tensor]:
    return {path: one.detach().clone() for path, one in all_parameter_paths(task).items()}


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {path for path in before if not torch.equal(before[path], after[path])}


def configs(*stages: dict[str, Any]) -> tuple[StageConfig, ...]:
    return TrainConfig.model_validate({"stages": list(stages)}).stages


def test_only_what_a_stage_names_learns_in_its_epochs(workshop) -> None:
    shop = workshop()
    loop, seen = shop.loop(stages=STAGES, **RULES), [values(shop.task)]
    for epoch in (1, 2, 3):
        loop.epoch = epoch
        loop._train_epoch()
        seen.append(values(shop.task))
    everything = set(seen[0])
    below = {path for path in everything if path.startswith(f"{FIRST}.")}
    assert below
    assert [changed(one, other) for one, other in itertools.pairwise(seen)] == [
        {"item_table.vector.weight"},
        everything - below,
        everything,
    ]


def test_a_stage_trains_as_if_the_rest_were_frozen_for_good(workshop) -> None:
    """Bit for bit: the same gradients, clipped by their own norm, and moments that know of no other epoch."""
    staged, frozen = workshop(), workshop()
    staged.loop(stages=[{"epochs": 1, "learns": ["item_table"]}, {}], **RULES | {"epochs": 1}).fit()
    for path, parameter in all_parameter_paths(frozen.task).items():
        parameter.requires_grad_(path.startswith("item_table"))
    frozen.loop(**RULES | {"epochs": 1}).fit()
    assert not changed(values(staged.task), values(frozen.task))


def test_a_run_goes_on_in_the_right_stage_bit_for_bit(workshop) -> None:
    one, first, second = workshop(), workshop(), workshop()
    one.loop(stages=STAGES, **RULES).fit()
    stopped = first.loop(stages=STAGES, **RULES)
    stopped.epoch = 1
    stopped._train_epoch()
    stopped.epoch, stopped._is_trained = 2, False
    state = stopped.snapshot()
    resumed = second.loop(stages=STAGES, **RULES)
    resumed.restore(dataclasses.replace(state, facts={**state.facts, "epoch": 2, "is_trained": False}))
    resumed._fit()
    assert not changed(values(one.task), values(second.task))


def test_what_learns_in_no_stage_is_frozen_before_anything_is_built(workshop) -> None:
    task = workshop().task
    freeze_for_good(task, configs({"epochs": 1, "learns": ["item_table"]}, {"frozen": [FIRST, "objectives"]}))
    learning = {path for path, one in all_parameter_paths(task).items() if one.requires_grad}
    assert not any(path.startswith((FIRST, "objectives")) for path in learning)
    assert {"item_table.vector.weight", "user_encoder.position.weight"} <= learning
    groups = build_optimizer(task, TrainConfig().optimizer).param_groups
    assert sum(len(group["params"]) for group in groups) == len(learning)


def test_what_would_stay_random_is_refused_and_what_was_loaded_is_not(workshop) -> None:
    task, stages = workshop().task, configs({"frozen": [FIRST]})
    with pytest.raises(RecipeError, match="weights of user_encoder learn in no stage, and no checkpoint gives them"):
        refuse_frozen_at_random(task, stages, loaded=())
    refuse_frozen_at_random(task, stages, loaded=(USERS,))
    refuse_frozen_at_random(task, (), loaded=())
    refuse_frozen_at_random(task, configs({"epochs": 1, "frozen": [FIRST]}, {}), loaded=())


def test_pretrained_encoders_may_learn_in_no_stage() -> None:
    encoder = nn.Linear(2, 2)
    items = SimpleNamespace(encoders={"text": encoder}, parts={"text_encoder": encoder})
    recommender = SimpleNamespace(item_encoder=items, parts=items.parts)
    task = SimpleNamespace(recommender=recommender, objectives=nn.ModuleDict())
    refuse_frozen_at_random(task, configs({"frozen": ["text_encoder"]}), loaded=())


def test_from_scratch_nothing_is_frozen_that_learns_in_no_stage() -> None:
    alone = configs({"epochs": 5, "learns": ["permutation"]}, {"frozen": ["permutation", FIRST]})
    assert learning_in_one(alone) == configs({"epochs": 5, "learns": ["permutation"]}, {"frozen": ["permutation"]})
    assert learning_in_one(configs({"frozen": [FIRST]})) == configs({})


def test_a_stage_says_when_it_begins(workshop, capsys: pytest.CaptureFixture[str]) -> None:
    shop = workshop()
    shop.loop(stages=STAGES, **RULES).fit()
    told = [line for line in capsys.readouterr().out.splitlines() if "begins" in line]
    assert told[0].endswith("stage 1 of 3 begins: 1 tensors of item_table learn")
    assert len(told) == 3


def test_a_stage_that_lies_behind_the_last_epoch_is_told_once(workshop, capsys: pytest.CaptureFixture[str]) -> None:
    shop = workshop()
    shop.loop(stages=STAGES, **RULES | {"epochs": 1})  # of a benchmark: it is not run to its end
    for epochs in (2, 3, 0):
        shop.loop(stages=STAGES, **RULES | {"epochs": epochs}).fit()
    output = capsys.readouterr()
    told = "train.stages[2]: begins after epoch 2, and train.epochs is 2: it never does"
    assert (output.out + output.err).count("it never does") == 1
    assert told in output.out + output.err


@pytest.mark.parametrize(
    ("stages", "problem"),
    [
        ([{"epochs": 2}], "stages: each says its epochs but the last"),
        ([{}, {}], "stages: each says its epochs but the last"),
        ([{"learns": ["item_table"], "frozen": ["user_encoder"]}], "frozen: has no effect beside learns"),
    ],
)
def test_stages_that_do_not_follow_one_another_are_refused(stages: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        TrainConfig.model_validate({"stages": stages})


@pytest.mark.parametrize(
    ("stage", "problem"),
    [
        ({"frozen": ["user_encoder.shelves"]}, r"\[0\].frozen: no parameter's path starts with user_encoder.shelves"),
        ({"learns": ["fusion"]}, "parts: item_table, objectives, user_encoder"),
        ({"frozen": ["item_table", USERS, "objectives"]}, r"stages\[0\]: nothing learns in it"),
    ],
)
def test_paths_without_effect_are_refused(workshop, stage: dict[str, Any], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        freeze_for_good(workshop().task, configs(stage))


def test_what_another_setting_freezes_cannot_learn(workshop) -> None:
    task = workshop().task
    task.recommender.user_encoder.requires_grad_(False)
    with pytest.raises(RecipeError, match=r"learns: user_encoder cannot learn"):
        freeze_for_good(task, configs({"learns": [USERS]}))


def test_deepspeed_serves_what_is_frozen_for_good_alone(workshop) -> None:
    Stages(configs({"frozen": [FIRST]}), workshop().task, Spread.ZERO2)
    with pytest.raises(RecipeError, match="under ZeRO-2 what learns cannot change from stage to stage"):
        Stages(configs(*STAGES), workshop().task, Spread.ZERO2)
