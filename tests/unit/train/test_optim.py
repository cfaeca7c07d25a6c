"""Which parameter gets which rate and decay, and how the rate moves."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from pmmrec.errors import RecipeError
from pmmrec.train.optim import OptimizerConfig, build_optimizer, parameter_paths
from pmmrec.train.schedule import build_scheduler


def _config(**settings) -> OptimizerConfig:
    return OptimizerConfig.model_validate(settings)


def _groups(task, config: OptimizerConfig) -> dict[str, dict]:
    return {group["name"]: group for group in build_optimizer(task, config).param_groups}


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, -0.1)])
def test_betas_are_shares_below_one(betas: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="betas"):
        _config(betas=betas)


def test_every_trainable_parameter_is_in_exactly_one_group(reading) -> None:
    groups = _groups(
        reading.task, _config(parts={"text_encoder": {"weight_decay": 0}, "user_encoder": {"learning_rate": 1e-2}})
    )
    members = [id(parameter) for group in groups.values() for parameter in group["params"]]
    wanted = [id(parameter) for parameter in reading.task.parameters() if parameter.requires_grad]
    assert sorted(members) == sorted(wanted)


def test_the_longest_matching_path_wins(reading) -> None:
    parts = {"text_encoder": {"learning_rate": 0.5}, "text_encoder.backbone": {"learning_rate": 0.25}}
    groups = _groups(reading.task, _config(parts=parts))
    paths = parameter_paths(reading.task)
    inside = {id(paths[path]) for path in paths if path.startswith("text_encoder.backbone.")}
    around = {id(paths[path]) for path in paths if path.startswith("text_encoder.")} - inside
    assert {id(p) for p in groups["text_encoder.backbone"]["params"]} == inside
    assert {id(p) for p in groups["text_encoder"]["params"]} == around
    assert around
    assert [groups[name]["lr"] for name in ("text_encoder", "text_encoder.backbone")] == [0.5, 0.25]


def test_a_part_is_matched_by_whole_names_only(reading) -> None:
    with pytest.raises(RecipeError, match=r"parts\.text_enc: no trainable parameter starts so"):
        build_optimizer(reading.task, _config(parts={"text_enc": {"weight_decay": 0}}))


def test_backbones_without_decay_leave_the_rest_its_decay(reading) -> None:
    none = {"weight_decay": 0}
    config = _config(weight_decay=0.1, parts={"text_encoder.backbone": none, "vision_encoder.backbone": none})
    groups = _groups(reading.task, config)
    assert {name: group["weight_decay"] for name, group in groups.items()} == {
        "rest": 0.1,
        "text_encoder.backbone": 0,
        "vision_encoder.backbone": 0,
    }
    assert {group["lr"] for group in groups.values()} == {1e-4}


def test_an_entry_that_matches_nothing_names_the_parts_there_are(reading) -> None:
    with pytest.raises(RecipeError, match="objectives, text_encoder, user_encoder, vision_encoder"):
        build_optimizer(reading.task, _config(parts={"image_encoder": {"warmup": 0.1}}))


def test_nothing_trainable_is_an_error(workshop) -> None:
    task = workshop({"dap": {"type": "next_item"}}).task.requires_grad_(False)
    with pytest.raises(RecipeError, match="no parameter is trainable"):
        build_optimizer(task, _config())


def test_a_trainable_tensor_outside_every_part_is_an_error(workshop) -> None:
    task = workshop().task
    task.recommender.register_parameter("stray", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(RecipeError, match="1 trainable tensors belong to no part"):
        build_optimizer(task, _config())


def test_frozen_parameters_are_in_no_group(workshop) -> None:
    task = workshop().task
    task.recommender.item_encoder.requires_grad_(False)
    names = {path.split(".")[0] for path in parameter_paths(task)}
    assert names == {"user_encoder", "objectives"}


def _rates(task, num_steps: int, steps_per_epoch: int = 1, **settings) -> list[float]:
    config = _config(learning_rate=1.0, **settings)
    optimizer = build_optimizer(task, config)
    scheduler = build_scheduler(optimizer, config, num_steps, steps_per_epoch)
    rates = []
    for _ in range(num_steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_warm_up_rises_evenly_and_a_constant_rate_stays(workshop) -> None:
    rates = _rates(workshop().task, 8, warmup=0.375)  # 3 of 8 steps
    assert rates[:8] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_a_cosine_starts_after_warm_up_and_ends_at_zero(workshop) -> None:
    rates = _rates(workshop().task, 6, warmup=0.34, schedule="cosine")  # 2 of 6 steps
    expected = [1 / 3, 2 / 3, 1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, (1 + math.cos(3 * math.pi / 4)) / 2, 0.0]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_a_linear_decay_starts_after_warm_up_and_ends_at_zero(workshop) -> None:
    rates = _rates(workshop().task, 6, warmup=0.34, schedule="linear")  # 2 of 6 steps
    assert rates == pytest.approx([1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25, 0.0], abs=1e-12)


def test_an_exponential_decay_falls_evenly_from_epoch_to_epoch(workshop) -> None:
    decay = {"type": "exponential", "factor": 0.25, "epochs": 2}
    rates = _rates(workshop().task, 6, steps_per_epoch=2, schedule=decay)
    assert rates == pytest.approx([1, 1, 0.5, 0.5, 0.25, 0.25, 0.125], abs=1e-12)


def test_a_step_decay_falls_after_the_epochs_it_names(workshop) -> None:
    decay = {"type": "step", "factor": 0.1, "after": [1, 3]}
    rates = _rates(workshop().task, 8, steps_per_epoch=2, schedule=decay, warmup=0.25)
    assert rates == pytest.approx([1 / 3, 2 / 3, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01], abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("exponentially", "must be one of constant, cosine, linear, {type: exponential, factor"),
        ("step", "and {type: step, after"),
        ({"type": "steps", "factor": 0.1}, "must be one of constant, cosine, linear, {type: exponential, factor"),
        ({"factor": 0.1}, "must be one of constant, cosine, linear, {type: exponential, factor"),
        (["linear"], "must be one of constant, cosine, linear, {type: exponential, factor"),
        ({"type": "exponential", "factor": 1.0}, "factor"),
        ({"type": "step", "after": [3, 3]}, "after: name each epoch once, in order"),
    ],
)
def test_a_schedule_that_means_nothing_is_refused(schedule: object, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        _config(schedule=schedule)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_weight_decay_is_that_of_torchs_own_optimizers(workshop, kind: str) -> None:
    ours, theirs = workshop().task.double(), workshop().task.double()
    reference_class = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    reference = reference_class(list(parameter_paths(theirs).values()), lr=0.01, weight_decay=0.3)
    optimizer = build_optimizer(ours, _config(type=kind, learning_rate=0.01, weight_decay=0.3))
    for step in range(3):
        for task in (ours, theirs):
            for number, parameter in enumerate(parameter_paths(task).values()):
                parameter.grad = torch.sin(torch.arange(parameter.numel()) + number + step).view_as(parameter).double()
        optimizer.step()
        reference.step()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)  # measured 2e-15


def test_the_schedule_scales_every_group_by_the_same_factor(workshop) -> None:
    config = _config(learning_rate=1.0, warmup=0.5, parts={"user_encoder": {"learning_rate": 0.1}})
    optimizer = build_optimizer(workshop().task, config)
    build_scheduler(optimizer, config, 2, 1)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 0.05])


def test_a_part_may_warm_up_on_its_own(workshop) -> None:
    config = _config(learning_rate=1.0, warmup=0.5, parts={"user_encoder": {"warmup": 0}})
    optimizer = build_optimizer(workshop().task, config)
    scheduler = build_scheduler(optimizer, config, 4, 1)  # 2 of 4 steps
    rates: dict[str, list[float]] = {"rest": [], "user_encoder": []}
    for _ in range(4):
        for group in optimizer.param_groups:
            rates[group["name"]].append(group["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == {"rest": pytest.approx([1 / 3, 2 / 3, 1, 1]), "user_encoder": [1, 1, 1, 1]}


def test_null_takes_an_entry_away(reading) -> None:
    config = _config(warmup=0.5, parts={"user_encoder": None, "fusion": {"warmup": 0}})
    assert set(_groups(reading.task, config)) == {"rest", "fusion"}
    assert config.groups == {"fusion": config.parts["fusion"]}


@pytest.mark.parametrize(
    ("parts", "problem"),
    [({"": {"learning_rate": 1}}, "one has no name"), ({"fusion": {}}, "parts.fusion: has no effect, it sets nothing")],
)
def test_an_entry_without_name_or_value_is_refused(parts: dict[str, dict[str, float]], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        OptimizerConfig.model_validate({"parts": parts})
