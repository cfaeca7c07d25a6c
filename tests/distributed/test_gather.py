"""Two processes whose negatives are gathered train what one process with all users trains."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import train_gathered
from safetensors.torch import load_file
from torch import Tensor
from worker_group import run_group

from pmmrec.contracts import Modality
from pmmrec.data.batches import BatchBuilder, DataConfig, Division
from pmmrec.evaluation.share import SINGLE_PROCESS
from pmmrec.train.processes import MachineConfig, Processes

ATOL = 1e-12  # float64, values near 1; measured at most 2e-15


@dataclass(frozen=True)
class Trained:
    """What `train_gathered` left of every kind, by one process and by two."""

    one: Path
    two: Path

    def tensors(self, kind: str, what: str) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        ours = [load_file(self.two / kind / f"{what}-{rank}.safetensors") for rank in (0, 1)]
        return load_file(self.one / kind / f"{what}-0.safetensors"), ours

    def events(self, kind: str, event: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        one, two = (_events(folder / kind, event) for folder in (self.one, self.two))
        return one, two


def _events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    train_gathered.make_home(folder)
    return folder


@pytest.fixture(scope="module")
def trained(home: Path) -> Trained:
    processes = Processes(MachineConfig(device="cpu"))
    for kind in train_gathered.KINDS:
        train_gathered.train(home, home / "one" / kind, kind, processes)
    run_group(2, train_gathered.__file__, home, home / "two").well()
    return Trained(home / "one", home / "two")


def _widest(first: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert first.keys() == other.keys()
    return max((first[name].double() - other[name].double()).abs().max().item() for name in first)


def test_the_main_process_alone_takes_whole_weights_to_its_cpu(trained: Trained) -> None:
    for kind in train_gathered.KINDS:
        held = [json.loads((trained.two / kind / f"kept-{rank}.json").read_text()) for rank in (0, 1)]
        assert held[0] > 10
        assert held[1] == 0


@pytest.mark.parametrize("kind", train_gathered.KINDS)
def test_after_ten_steps_both_have_the_weights_of_one(trained: Trained, kind: str) -> None:
    one, two = trained.tensors(kind, "weights")
    assert all(_widest(one, weights) < ATOL for weights in two)
    assert len(trained.events(kind, "train")[0]) > 10


@pytest.mark.parametrize("way", train_gathered.WAYS)
def test_parts_and_checkpoints_change_neither_weights_nor_gradients(trained: Trained, way: str) -> None:
    kind, _ = train_gathered.WAYS[way]
    for what in ("weights", "gradients"):
        one, _ = trained.tensors(kind, what)
        assert _widest(one, load_file(trained.two / way / f"{what}-0.safetensors")) < ATOL


def test_both_processes_call_every_encoder_as_often_as_the_other(trained: Trained) -> None:
    for name in (*train_gathered.KINDS, *train_gathered.WAYS, "apart", "pairs", "."):
        first, other = (json.loads((trained.two / name / f"calls-{rank}.json").read_text()) for rank in (0, 1))
        assert first == other, name
        assert first["text"] == first["image"] > 0


def test_ranks_of_both_are_those_of_one_to_the_bit(trained: Trained, home: Path) -> None:
    task = train_gathered.task_of(home, train_gathered.PAPER, train_gathered.sources_of(home))
    task.load_state_dict(load_file(trained.two / "plain" / "weights-0.safetensors"))
    alone = train_gathered.ranks_of(home, task.float(), SINGLE_PROCESS)
    for rank in (0, 1):
        found = load_file(trained.two / f"ranks-{rank}.safetensors")
        assert all(torch.equal(found[name], value) for name, value in alone.items())
    assert len(alone["rank"].unique()) > 3


@pytest.mark.parametrize("kind", train_gathered.KINDS)
def test_the_gradients_of_the_first_step_are_those_of_one(trained: Trained, kind: str) -> None:
    one, two = trained.tensors(kind, "gradients")
    assert all(_widest(one, gradients) < ATOL for gradients in two)
    learns = [name for name, gradient in one.items() if gradient.abs().max() > 1e-6]
    assert {name.split(".")[0] for name in learns} == {"recommender", "objectives"}


@pytest.mark.parametrize("kind", train_gathered.KINDS)
@pytest.mark.parametrize("event", ["train", "gradient_norm"])
def test_every_figure_of_every_step_is_that_of_one(trained: Trained, kind: str, event: str) -> None:
    one, two = trained.events(kind, event)
    timed = {"time_s", "users_per_s"}
    assert len(one) == len(two)
    for first, other in zip(one, two, strict=True):
        assert first.keys() == other.keys()
        for name in first.keys() - timed - {"event"}:
            assert other[name] == pytest.approx(first[name], rel=2e-6, abs=1e-6), name  # logged in float32


def test_one_of_two_users_may_hold_no_image_while_the_other_does(home: Path) -> None:
    sources = train_gathered.sources_of(home)
    task = train_gathered.task_of(home, train_gathered.PAPER, sources)
    reader = train_gathered.reader_of(home, task, sources)
    rules: Any = (sources.splits, reader, DataConfig(), task.requests, 2, train_gathered.SEED)
    shares = [BatchBuilder(*rules, Division(rank, 2)) for rank in (0, 1)]
    held = [[bool(share.build(0, step).items.has_U[Modality.IMAGE].any()) for share in shares] for step in range(10)]
    assert [True, False] in held
    assert [False, False] in held


def test_no_item_is_encoded_twice(trained: Trained) -> None:
    one, two = trained.events("paper", "train")
    assert [event["items_encoded"] for event in two] == [event["items_encoded"] for event in one]


def test_without_the_gather_something_else_is_trained(trained: Trained) -> None:
    one, _ = trained.tensors("paper", "weights")
    assert _widest(one, load_file(trained.two / "apart" / "weights-0.safetensors")) > 1e-3
    (first, *_), (other, *_) = trained.events("paper", "train")[0], _events(trained.two / "apart", "train")
    assert other["dap/chance"] < first["dap/chance"]
    assert other["users"] == first["users"]
