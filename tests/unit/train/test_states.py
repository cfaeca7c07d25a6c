"""A training that is stopped and goes on is, bit for bit, the one that was never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.data.batches import DataConfig
from pmmrec.data.items import ItemReader
from pmmrec.errors import CheckpointError, RecipeError, StoppedError
from pmmrec.models.build import ModelConfig, build
from pmmrec.objectives import objectives
from pmmrec.train.callbacks import KeepBest, RankEvery, ValidationConfig
from pmmrec.train.loop import Loop, TrainConfig
from pmmrec.train.prepare import Batches, Sources
from pmmrec.train.processes import MachineConfig
from pmmrec.train.run import Run
from pmmrec.train.states import States
from pmmrec.train.task import TrainingTask

MODEL = {
    "width": 8,
    "item_encoder": {"type": "ids"},
    "user_encoder": {"type": "transformer", "num_layers": 1, "num_heads": 2, "dropout": 0.2},
}
TERMS = {"dap": {"type": "next_item"}, "nid": {"type": "noise_detection", "weight": 0.5}}
SETTINGS: dict[str, Any] = {
    "batch_users": 8,  # five steps an epoch
    "epochs": 3,
    "log_every": 2,
    "optimizer": {"learning_rate": 0.02, "schedule": "cosine", "warmup": 0.2},
    "state": {"every_minutes": None},
}
TIMES = ("time_s", "seconds", "users_per_s", "peak_memory_bytes")  # not even two undisturbed runs share these


@dataclass(frozen=True)
class Recipe:
    """What `Run.start` asks for."""

    folder: Path
    name: str = "one"
    seed: int = 1
    machine: MachineConfig = field(default=MachineConfig(device="cpu"))

    def to_yaml(self) -> str:
        return f"name: {self.name}\nseed: {self.seed}\n"


@dataclass
class Outcome:
    """What came of one attempt."""

    weights: dict[str, Tensor]
    loop: Loop
    users: list[str]  # in the order in which they were trained on, by this attempt
    best: dict[str, Tensor]  # the weights that KeepBest held last


class _Stop:
    """Raises a signal's flag after a step of training, or at the end of an epoch."""

    def __init__(self, run: Run, *, at_step: int | None, at_epoch: int | None) -> None:
        self._run, self._at_step, self._at_epoch = run, at_step, at_epoch

    def epoch_ended(self, loop: Loop, epoch: int) -> None:
        if epoch == self._at_epoch:
            self._run.signals.heard = "SIGTERM"

    def step_begins(self, step: int) -> None:
        if step == self._at_step:
            self._run.signals.heard = "SIGTERM"


class _Watched(Batches):
    """Batches that remember whom they gave out."""

    users: list[str]
    stop: _Stop
    loop: Loop

    def to_device(self, batch, device):
        self.users.extend(batch.user_id)
        self.stop.step_begins(self.loop.step + 1)
        return super().to_device(batch, device)


Attempt = Callable[..., Outcome]


@pytest.fixture
def attempt(tmp_path: Path, world: Path) -> Attempt:
    """Trains in `folder` until it ends or is stopped."""

    def train(
        name: str,
        *,
        resume: bool = False,
        at_step: int | None = None,
        at_epoch: int | None = None,
        domain: str = "boutique",
        seed: int = 1,
        patience: int = 9,
        finish: bool = False,
        state: dict[str, Any] | None = None,
    ) -> Outcome:
        sources = Sources.open([world / domain])
        config = TrainConfig.model_validate({**SETTINGS, "state": {**SETTINGS["state"], **(state or {})}})
        judge = ValidationConfig(metric="ndcg@10", patience=patience)
        best: dict[str, Tensor] = {}

        def save(loop: Loop) -> None:
            best.update({name: tensor.clone() for name, tensor in loop.state_dict().items()})
            kept = run.folder / "checkpoint"
            kept.mkdir(exist_ok=True)
            (kept / "model_index.json").write_text(f"epoch {max(loop.validation)}")

        with Run.start(Recipe(tmp_path / name, seed=seed), resume=resume) as run:
            run.processes.seed(1, same=True)
            recommender = build(ModelConfig.model_validate(MODEL), {}, sources.catalogues)
            task = TrainingTask.of(recommender, {n: objectives.config(t) for n, t in TERMS.items()}, 8)
            reader = ItemReader(sources.domains, frozenset(), None, None, tmp_path)
            batches = _Watched(DataConfig(), sources, reader, task, 8, 1, run.processes, run.log)
            batches.users, batches.stop = [], _Stop(run, at_step=at_step, at_epoch=at_epoch)
            rank = RankEvery(judge, reader, sources.splits, sources.names)
            run.processes.seed(1, same=False)
            states = States.of(run, config.state, sources, started_from="none")
            callbacks = [rank, KeepBest(judge, save), batches.stop]
            loop = Loop(config, task, batches, run.processes, run.log, callbacks, states)
            batches.loop = loop
            with nullcontext() if at_step is None and at_epoch is None else pytest.raises(StoppedError):
                loop.fit()
            if finish:
                states.finish()
            weights = {name: tensor.clone() for name, tensor in task.state_dict().items()}
        return Outcome(weights, loop, batches.users, best)

    return train


def _events(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: figure for name, figure in event.items() if name not in TIMES} for event in lines]


def _assert_same(first: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert first.keys() == other.keys()
    assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    "stop",
    [{"at_epoch": 0}, {"at_step": 1}, {"at_step": 5}, {"at_step": 7}, {"at_epoch": 2}, {"at_step": 14}],
    ids=lambda stop: "-".join(f"{name}-{value}" for name, value in stop.items()),
)
def test_a_training_that_goes_on_is_the_one_that_was_never_stopped(
    attempt: Attempt, tmp_path: Path, stop: dict[str, int]
) -> None:
    whole = attempt("whole")
    first = attempt("cut", **stop)
    assert 3 not in first.loop.validation
    assert list((tmp_path / "cut" / "state").glob("step-*"))
    second = attempt("cut", resume=True)
    _assert_same(second.weights, whole.weights)
    _assert_same({**first.best, **second.best}, whole.best)
    assert first.users + second.users == whole.users
    assert second.loop.validation == whole.loop.validation
    assert second.loop.best == whole.loop.best
    assert _events(tmp_path / "cut") == _events(tmp_path / "whole")


def test_a_training_may_be_stopped_again_and_again(attempt: Attempt, tmp_path: Path) -> None:
    whole, users = attempt("whole"), []
    for step in (2, 4, 6, 9, 13):
        users += attempt("cut", resume=True, at_step=step).users
    last = attempt("cut", resume=True)
    _assert_same(last.weights, whole.weights)
    assert users + last.users == whole.users
    assert _events(tmp_path / "cut") == _events(tmp_path / "whole")


def test_early_stopping_counts_on(attempt: Attempt, tmp_path: Path) -> None:
    whole = attempt("whole", patience=1)
    assert max(whole.loop.validation) == 2  # epoch 2 is no better than epoch 1
    attempt("cut", patience=1, at_step=8)
    last = attempt("cut", resume=True, patience=1)
    assert last.loop.validation == whole.loop.validation
    assert _events(tmp_path / "cut") == _events(tmp_path / "whole")


def _states(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cut" / "state").glob("step-*"))


def _steps(tmp_path: Path) -> list[int]:
    return [int(path.name.split("-")[1]) for path in _states(tmp_path)]


def test_states_are_kept_by_steps_and_the_oldest_give_way(attempt: Attempt, tmp_path: Path) -> None:
    attempt("cut", at_step=11, state={"every_steps": 3, "keep": 3})
    assert _steps(tmp_path) == [6, 9, 12]


def test_states_are_kept_by_the_clock(attempt: Attempt, tmp_path: Path) -> None:
    attempt("cut", at_step=9, state={"every_minutes": 1e-9, "keep": 99})
    # Heard a step late, and not again of a wish from before the last state; each epoch ends with one.
    assert _steps(tmp_path) == [0, 2, 4, 5, 7, 9, 10]


@pytest.mark.parametrize("name", ["tensors.safetensors", "facts.json", "sha256.json", "best/model_index.json"])
def test_a_state_that_was_changed_gives_way_to_the_one_before(
    attempt: Attempt, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = attempt("whole")
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
    _assert_same(last.weights, whole.weights)
    assert _events(tmp_path / "cut") == _events(tmp_path / "whole")


def test_where_no_state_can_be_read_nothing_is_begun_anew(attempt: Attempt, tmp_path: Path) -> None:
    attempt("cut", at_step=3)
    for path in _states(tmp_path):
        (path / "tensors.safetensors").unlink()
    before = (tmp_path / "cut" / "events.jsonl").read_bytes()
    with pytest.raises(CheckpointError, match=r"cut/state: none of 1 states can be read; its best weights are in"):
        attempt("cut", resume=True)
    assert (tmp_path / "cut" / "events.jsonl").read_bytes() == before


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


def test_another_domain_is_refused_by_name(attempt: Attempt) -> None:
    attempt("cut", at_step=2)
    with pytest.raises(RecipeError, match=r"cut: cannot go on: domain \w+ is not what the run began with"):
        attempt("cut", resume=True, domain="gallery")


def test_a_finished_run_says_so_and_keeps_no_state(attempt: Attempt, tmp_path: Path) -> None:
    attempt("cut", finish=True)
    assert not (tmp_path / "cut" / "state").exists()
    assert _events(tmp_path / "cut")[-1] == {"event": "finished", "step": 15}
    with Run.start(Recipe(tmp_path / "cut"), resume=True) as run:
        assert run.is_finished


def test_a_run_that_ended_but_did_not_finish_trains_no_more(attempt: Attempt, tmp_path: Path) -> None:
    whole = attempt("cut")
    events = _events(tmp_path / "cut")
    again = attempt("cut", resume=True)
    assert again.users == []
    _assert_same(again.weights, whole.weights)
    assert again.loop.best == whole.loop.best
    assert _events(tmp_path / "cut") == events
