"""A training that is stopped and resumed equals, bit for bit, one that was never stopped."""

from __future__ import annotations

import json
import math
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from attempts import Attempt, Outcome, Recipe, train
from command_line import Pmmrec
from forked import in_child
from torch import Tensor
from torch.nn.modules.module import register_module_forward_pre_hook

from pmmrec.errors import CheckpointError, DivergenceError, MachineError, RecipeError
from pmmrec.models import ItemEncoder
from pmmrec.train.prepare import Sources
from pmmrec.train.run import Run
from pmmrec.train.state import StateConfig
from pmmrec.train.states import States
from pmmrec.zoo.files import INCOMPLETE

TIMES = ("time_s", "seconds", "users_per_s", "peak_memory_bytes")  # not even two undisturbed runs share these


@pytest.fixture
def attempt(tmp_path: Path, world: Path) -> Attempt:
    return partial(train, tmp_path, world)


@dataclass(frozen=True)
class Whole:
    """The training that was never stopped, and its events."""

    outcome: Outcome
    events: list[dict[str, Any]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Whole:
    home = tmp_path_factory.mktemp("whole")
    return Whole(train(home, world, "one"), _events(home / "one"))


def _events(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: figure for name, figure in event.items() if name not in TIMES} for event in lines]


def _assert_same(first: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert first.keys() == other.keys()
    assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "stop",
    [
        {"preparing": True},
        {"ranking": 0},
        {"ranking": 2},
        {"ranking": 2, "state": {"every_steps": 5}},
        {"at_epoch": 0},
        {"at_step": 1},
        {"at_step": 5},
        {"at_step": 7},
        {"at_epoch": 2},
        {"at_step": 14},
        {"saving": 1},
        {"keeping": 8, "state": {"every_steps": 4}},
    ],
    ids=lambda stop: "{}-{}".format(*next(iter(stop.items()))),
)
def test_a_resumed_training_equals_one_that_was_never_stopped(
    attempt: Attempt, tmp_path: Path, whole: Whole, stop: dict[str, Any]
) -> None:
    first = attempt("cut", **stop)
    assert 3 not in first.loop.validation
    assert list((tmp_path / "cut" / "state").glob("step-*"))
    second = attempt("cut", resume=True)
    _assert_same(second.weights, whole.outcome.weights)
    _assert_same({**first.best, **second.best}, whole.outcome.best)
    assert first.users + second.users == whole.outcome.users
    assert second.loop.validation == whole.outcome.loop.validation
    assert second.loop.best == whole.outcome.loop.best
    assert _events(tmp_path / "cut") == whole.events


def test_a_training_may_be_stopped_again_and_again(attempt: Attempt, tmp_path: Path, whole: Whole) -> None:
    users: list[str] = []
    for step in (2, 4, 6, 9, 13):
        users += attempt("cut", resume=True, at_step=step).users
    last = attempt("cut", resume=True)
    _assert_same(last.weights, whole.outcome.weights)
    assert users + last.users == whole.outcome.users
    assert _events(tmp_path / "cut") == whole.events


@pytest.mark.parametrize("stop", [{"preparing": True}, {"ranking": 0}, {"ranking": 1}])
def test_a_stop_does_not_wait_for_validation(attempt: Attempt, stop: dict[str, Any]) -> None:
    assert list(attempt("cut", **stop).loop.validation) == list(range(stop.get("ranking", 0)))


def test_a_stop_does_not_wait_for_the_ranking_of_test_targets(tmp_path: Path, world: Path, pmmrec: Pmmrec) -> None:
    encoded = iter(range(99))

    def before(module: torch.nn.Module, _arguments: object) -> None:
        if isinstance(module, ItemEncoder) and not torch.is_grad_enabled() and next(encoded) == 2:
            signal.raise_signal(signal.SIGTERM)

    settings = ("model.width=16", "train.epochs=1", f"cache={tmp_path}", f"runs={tmp_path}", "machine.device=cpu")
    asked = ("zoo/ids/small/sasrec_in_batch", "--from", "none", "--on", world / "boutique", *settings, "name=cut")
    hook = register_module_forward_pre_hook(before)
    try:
        assert pmmrec("finetune", *asked).code == 75
    finally:
        hook.remove()
    kinds = [event["event"] for event in _events(tmp_path / "cut")]
    assert kinds == ["parameters", "validation", "gradient_norm", "train", "epoch", "validation"]
    assert not (tmp_path / "cut" / "metrics.json").exists()
    assert pmmrec("finetune", *asked, "--resume").code == 0
    assert [event["event"] for event in _events(tmp_path / "cut")] == [*kinds, "finished"]
    assert (tmp_path / "cut" / "metrics.json").exists()


def test_early_stopping_counts_across_a_stop(attempt: Attempt, tmp_path: Path) -> None:
    impatient = attempt("impatient", patience=1)
    assert max(impatient.loop.validation) == 2  # epoch 2 is no better than epoch 1
    attempt("cut", patience=1, at_step=8)
    last = attempt("cut", resume=True, patience=1)
    assert last.loop.validation == impatient.loop.validation
    assert _events(tmp_path / "cut") == _events(tmp_path / "impatient")


@pytest.mark.parametrize("stop", [{"at_step": 6}, {"at_step": 7}, {"at_step": 9}, {"keeping": 8}], ids=str)
def test_skipped_steps_are_counted_across_a_stop(attempt: Attempt, tmp_path: Path, stop: dict[str, int]) -> None:
    state = {"every_steps": 4}
    expected = attempt("one", broken={7, 8}, state=state)
    attempt("cut", **stop, broken={7, 8}, state=state)
    last = attempt("cut", resume=True, broken={7, 8}, state=state)
    _assert_same(last.weights, expected.weights)
    assert _events(tmp_path / "cut") == _events(tmp_path / "one")
    assert [event["skipped"] for event in _events(tmp_path / "cut") if event["event"] == "nonfinite"] == [1, 2]


def test_what_may_be_left_out_is_counted_over_stops(attempt: Attempt) -> None:
    broken = {3, 5, 9}
    attempt("cut", at_step=6, broken=broken)
    with pytest.raises(DivergenceError, match=r"^step 9: "):
        attempt("cut", resume=True, broken=broken)
    with pytest.raises(DivergenceError, match=r"^step 9: "):
        attempt("cut", resume=True, broken=broken)


def _states(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cut" / "state").glob("step-*"))


def _steps(tmp_path: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in _states(tmp_path)]


def test_states_are_saved_by_steps_and_the_oldest_are_removed(attempt: Attempt, tmp_path: Path) -> None:
    attempt("cut", at_step=11, state={"every_steps": 3, "keep": 3})
    assert _steps(tmp_path) == [6, 9, 12]


def test_states_are_saved_by_the_clock(attempt: Attempt, tmp_path: Path) -> None:
    attempt("cut", at_step=9, state={"every_minutes": 1e-9, "keep": 99})
    # Heard a step late, and not again of a flag from before the last state; each epoch ends with one.
    assert _steps(tmp_path) == [0, 2, 4, 5, 7, 9, 10]


@pytest.mark.parametrize("name", ["tensors.safetensors", "facts.json", "sha256.json", "best/model_index.json"])
def test_a_damaged_state_is_replaced_by_the_one_before(
    attempt: Attempt, tmp_path: Path, whole: Whole, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt("cut", at_step=11, state={"every_steps": 4})
    broken = _states(tmp_path)[-1] / name
    data = bytearray(broken.read_bytes())
    data[len(data) // 2] ^= 1
    broken.unlink()  # the best checkpoint shares its bytes with the run's
    broken.write_bytes(data)
    capsys.readouterr()
    last = attempt("cut", resume=True)
    said = capsys.readouterr()
    assert "step-00000012-epoch-0003: cannot be read and is left out: " in said.err
    assert "goes on after step 8, in epoch 2" in said.out
    _assert_same(last.weights, whole.outcome.weights)
    assert _events(tmp_path / "cut") == whole.events


def test_a_run_without_a_readable_state_is_refused(attempt: Attempt, tmp_path: Path) -> None:
    attempt("cut", at_step=3)
    for path in _states(tmp_path):
        (path / "tensors.safetensors").unlink()
    before = (tmp_path / "cut" / "events.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"cut/state: none of 1 states can be read; its best weights are in"):
        attempt("cut", resume=True)
    assert (tmp_path / "cut" / "events.jsonl").read_bytes() == before


def test_a_run_killed_while_it_saved_its_first_state_starts_again(
    attempt: Attempt, tmp_path: Path, whole: Whole
) -> None:
    attempt("cut", at_epoch=0)
    (first,) = _states(tmp_path)
    first.rename(first.with_name(f"{first.name}{INCOMPLETE}"))
    _assert_same(attempt("cut", resume=True).weights, whole.outcome.weights)
    assert _events(tmp_path / "cut") == whole.events


def test_the_best_checkpoint_is_that_of_the_state(attempt: Attempt, tmp_path: Path) -> None:
    attempt("cut", at_step=2)
    index = tmp_path / "cut" / "checkpoint" / "model_index.json"
    kept = index.read_text()
    index.unlink()
    index.write_text("epoch 1 of a future that a kill undid")
    attempt("cut", resume=True, at_step=4)
    assert index.read_text() == kept == "epoch 0"


def test_another_recipe_is_refused_by_name(attempt: Attempt) -> None:
    attempt("cut", at_step=2)
    told = r"cut: cannot go on with another recipe: seed was 1, is 2; begin another run"
    with pytest.raises(RecipeError, match=told):
        attempt("cut", resume=True, seed=2)


CONSTANT = {"learning_rate": 0.02}
COSINE = {"learning_rate": 0.02, "schedule": "cosine", "warmup": 0.2}


def _kept_recipe(folder: Path) -> Any:
    return yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def longer(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Whole:
    """Four epochs at one rate, never stopped."""
    home = tmp_path_factory.mktemp("longer")
    return Whole(train(home, world, "one", epochs=4, optimizer=CONSTANT), _events(home / "one"))


@pytest.mark.parametrize("stop", [{"at_step": 3}, {"ranking": 2}, {}], ids=str)  # {}: training was over, and not ranked
def test_a_run_resumed_for_more_epochs_equals_the_longer_run(
    attempt: Attempt, tmp_path: Path, longer: Whole, stop: dict[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    first = attempt("cut", epochs=2, optimizer=CONSTANT, **stop)
    capsys.readouterr()
    last = attempt("cut", epochs=4, optimizer=CONSTANT, resume=True)
    assert "train.epochs: 2 -> 4; learning rates stay as they were\n" in capsys.readouterr().out
    _assert_same(last.weights, longer.outcome.weights)
    assert first.users + last.users == longer.outcome.users
    assert last.loop.best == longer.outcome.loop.best
    assert _events(tmp_path / "cut") == longer.events
    assert _kept_recipe(tmp_path / "cut")["train"]["epochs"] == 4


def test_other_epochs_move_the_schedule_and_the_log_says_how(
    attempt: Attempt, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt("cut", epochs=3, optimizer=COSINE, at_step=7)
    capsys.readouterr()
    last = attempt("cut", epochs=6, optimizer=COSINE, resume=True)
    old, new = (0.01 * (1 + math.cos(math.pi * share)) for share in ((8 - 3) / (15 - 3), (8 - 6) / (30 - 6)))
    told = f"the rate of step 9 goes from {old:.3g} to {new:.3g}\n"
    assert f"train.epochs: 3 -> 6; cosine now ends at step 30 instead of 15; {told}" in capsys.readouterr().out
    rates = {event["step"]: event["learning_rate"] for event in _events(tmp_path / "cut") if event["event"] == "train"}
    expected = [0.01 * (1 + math.cos(math.pi * (step - 1 - 6) / (30 - 6))) for step in (10, 12, 30)]
    assert [rates[step] for step in (10, 12, 30)] == pytest.approx(expected, rel=1e-12)
    assert last.loop.step == 30


def test_other_epochs_move_the_end_of_warm_up(attempt: Attempt, capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = {"learning_rate": 0.02, "warmup": 0.2}
    attempt("cut", epochs=3, optimizer=optimizer, at_step=2)
    capsys.readouterr()
    attempt("cut", epochs=6, optimizer=optimizer, resume=True)
    told = "warm-up now ends at step 6 instead of 3; the rate of step 4 goes from 0.02 to 0.0114"
    assert f"train.epochs: 3 -> 6; {told}\n" in capsys.readouterr().out


@pytest.mark.parametrize("stop", [{"at_step": 6}, {"at_epoch": 2}, {"ranking": 2}], ids=str)
def test_a_run_may_end_sooner_but_not_before_the_epoch_it_is_in(
    attempt: Attempt, tmp_path: Path, longer: Whole, stop: dict[str, int]
) -> None:
    attempt("cut", epochs=4, optimizer=CONSTANT, **stop)
    with pytest.raises(RecipeError, match=r"^train\.epochs: 1, but the run is in epoch 2 already; take 2 or more$"):
        attempt("cut", epochs=1, optimizer=CONSTANT, resume=True)
    assert _kept_recipe(tmp_path / "cut")["train"]["epochs"] == 4
    last = attempt("cut", epochs=2, optimizer=CONSTANT, resume=True)
    assert last.loop.step == 10
    assert last.loop.validation == {epoch: longer.outcome.loop.validation[epoch] for epoch in range(3)}


def test_a_run_that_stopped_early_does_not_train_on(attempt: Attempt, capsys: pytest.CaptureFixture[str]) -> None:
    over = attempt("cut", patience=1, optimizer=COSINE)
    assert max(over.loop.validation) == 2
    again = attempt("cut", patience=1, optimizer=COSINE, epochs=9, resume=True)
    assert again.users == []
    assert "training had stopped early" in capsys.readouterr().out


@pytest.mark.parametrize("epochs", [2, 4])
def test_a_finished_run_does_not_go_on_for_other_epochs(attempt: Attempt, tmp_path: Path, epochs: int) -> None:
    attempt("cut", finish=True)
    told = rf"cut: is finished.*: train.epochs was 3, is {epochs}; .*finetune RECIPE --from .*cut/checkpoint"
    with pytest.raises(RecipeError, match=told):
        attempt("cut", epochs=epochs, resume=True)
    assert _kept_recipe(tmp_path / "cut")["train"]["epochs"] == 3


def test_a_run_goes_on_where_its_domains_were_moved(
    attempt: Attempt, tmp_path: Path, world: Path, whole: Whole
) -> None:
    attempt("cut", at_step=7)
    shutil.copytree(world / "boutique", tmp_path / "moved")
    last = attempt("cut", domain=str(tmp_path / "moved"), resume=True)
    _assert_same(last.weights, whole.outcome.weights)
    assert _kept_recipe(tmp_path / "cut")["data"]["sources"] == [str(tmp_path / "moved")]


def test_domains_are_named_in_the_order_that_the_run_began_with(attempt: Attempt) -> None:
    attempt("cut", domain=("bazaar", "gallery"), at_step=2)
    with pytest.raises(RecipeError, match=r"data\.sources was bazaar, gallery, is gallery, bazaar; name the domains"):
        attempt("cut", domain=("gallery", "bazaar"), resume=True)


def test_a_finished_run_is_refused_for_other_domains(attempt: Attempt) -> None:
    attempt("cut", finish=True)
    with pytest.raises(RecipeError, match=r"cannot go on with another recipe: data\.sources was "):
        attempt("cut", domain="gallery", resume=True)


def test_another_domain_is_refused_by_name(attempt: Attempt) -> None:
    attempt("cut", at_step=2)
    with pytest.raises(RecipeError, match=r"cut: cannot go on: domain \w+ is not what the run began with"):
        attempt("cut", resume=True, domain="gallery")


def test_a_finished_run_says_so_and_keeps_no_state(attempt: Attempt, tmp_path: Path) -> None:
    attempt("cut", finish=True)
    assert not (tmp_path / "cut" / "state").exists()
    assert _events(tmp_path / "cut")[-1] == {"event": "finished", "step": 15}
    (tmp_path / "cut" / "state" / "step-00000015-epoch-0004").mkdir(parents=True)  # as a kill amid its last steps may
    with Run.start(Recipe(tmp_path / "cut"), resume=True) as run:
        assert run.is_finished
    assert not (tmp_path / "cut" / "state").exists()


def test_a_run_that_ended_but_did_not_finish_trains_no_more(attempt: Attempt, tmp_path: Path) -> None:
    first = attempt("cut")
    events = _events(tmp_path / "cut")
    again = attempt("cut", resume=True)
    assert again.users == []
    _assert_same(again.weights, first.weights)
    assert again.loop.best == first.loop.best
    assert _events(tmp_path / "cut") == events


def test_training_goes_on_if_a_state_cannot_be_written(
    attempt: Attempt, whole: Whole, capsys: pytest.CaptureFixture[str]
) -> None:
    _assert_same(attempt("cut", is_blocked=True, state={"every_steps": 6}).weights, whole.outcome.weights)
    said = capsys.readouterr().err
    assert "warning: step 6: no state is kept: " in said
    assert "warning: step 12: no state is kept: " in said


def test_a_stop_that_cannot_save_its_state_is_a_machine_error(attempt: Attempt) -> None:
    with pytest.raises(
        MachineError, match=r"^step 5: ended by SIGTERM and could not keep its state: .*best\.incomplete"
    ):
        attempt("cut", is_blocked=True, at_step=4)


def test_a_killed_data_worker_is_reported_and_the_run_can_be_resumed(
    attempt: Attempt, tmp_path: Path, whole: Whole
) -> None:
    def lose() -> None:
        """In step 6, before a state is kept: that and the step are brought to an end."""
        with pytest.raises(MachineError, match=r"^step 7: a process that reads data was ended.*lower data\.workers"):
            attempt("cut", workers=1, lost_worker_at=6, state={"every_steps": 3})

    in_child(lose)
    assert max(kept.name for kept in (tmp_path / "cut/state").iterdir()) == "step-00000006-epoch-0002"
    last = attempt("cut", resume=True, workers=1)
    _assert_same(last.weights, whole.outcome.weights)
    assert _events(tmp_path / "cut") == whole.events


def test_another_platform_that_judges_is_refused_by_name(world: Path, tmp_path: Path) -> None:
    run: Any = SimpleNamespace(
        folder=tmp_path / "cut", processes=SimpleNamespace(rank=0, world=1), before_unlocking=lambda work: work
    )
    sources = Sources.open([world / "bazaar"])
    judges = {name: Sources.open([world / name]) for name in ("boutique", "gallery")}
    states = {
        name: States.of(run, StateConfig(), sources, started_from="none", judging=judging)
        for name, judging in judges.items()
    }
    kept = dict(states["boutique"]._about)
    states["boutique"]._refuse_other(kept)
    with pytest.raises(RecipeError, match="cannot go on: domain boutique is not what the run began with"):
        states["gallery"]._refuse_other(kept)
    del kept["judges"]  # as earlier versions wrote it: the sources judged
    States.of(run, StateConfig(), sources, started_from="none")._refuse_other(kept)
