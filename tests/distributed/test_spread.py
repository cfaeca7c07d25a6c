"""Two processes with sharded weights, gradients and optimizer states (FSDP2) train what one process trains."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import stop_spread
import torch
import train_gathered
import train_spread
from command_line import SMALL, Pmmrec, launch_pmmrec, sources, working_in
from safetensors.torch import load_file
from torch import Tensor
from worker_group import FSDP2, Ended, run_group

from pmmrec.evaluation.share import SINGLE_PROCESS
from pmmrec.shipped import shipped_file
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.zoo.checkpoint import Checkpoint

ATOL = 1e-12  # float64, values near 1; measured at most 2e-15
WAYS = {**{kind: kind for kind in train_gathered.KINDS}, "checkpointed": "paper"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train_spread` left in `two`, and `train_gathered`, as one process, in `one`."""
    folder = tmp_path_factory.mktemp("spread")
    train_gathered.make_home(folder)
    processes = Processes(MachineConfig(device="cpu"))
    for kind in train_gathered.KINDS:
        train_gathered.train(folder, folder / "one" / kind, kind, processes)
    run_group(2, train_spread.__file__, folder, folder / "two", spread=FSDP2).well()
    return folder


def widest(first: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert first.keys() == other.keys()
    return max((first[name].double() - other[name].double()).abs().max().item() for name in first)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_each_process_holds_half_of_the_weights(home: Path) -> None:
    held = [json.loads((home / "two" / f"held-{rank}.json").read_text()) for rank in (0, 1)]
    assert held[0]["whole"] == held[1]["whole"] == held[0]["own"] + held[1]["own"]
    assert max(rank["own"] for rank in held) < 0.6 * held[0]["whole"]  # the first has the odd rows
    assert {"BertLayer", "CLIPEncoderLayer", "TransformerBlock"} == set(held[0]["blocks"])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("what", ["gradients", "weights"])
def test_gradients_of_the_first_step_and_weights_after_ten_are_those_of_one(home: Path, way: str, what: str) -> None:
    name = f"{what}-0.safetensors"
    assert widest(load_file(home / "one" / WAYS[way] / name), load_file(home / "two" / way / name)) < ATOL
    assert len(events(home / "two" / way, "train")) > 10


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("event", ["train", "gradient_norm"])
def test_every_figure_of_every_step_is_that_of_one(home: Path, way: str, event: str) -> None:
    one, two = events(home / "one" / WAYS[way], event), events(home / "two" / way, event)
    assert len(one) == len(two)
    for first, other in zip(one, two, strict=True):
        for name in first.keys() - {"time_s", "users_per_s", "event"}:
            assert other[name] == pytest.approx(first[name], rel=2e-6, abs=1e-6), name  # logged in float32


def test_the_main_process_alone_takes_whole_weights_to_its_cpu(home: Path) -> None:
    for way in WAYS:
        held = [json.loads((home / "two" / way / f"kept-{rank}.json").read_text()) for rank in (0, 1)]
        assert held[0] > 10
        assert held[1] == 0


def test_both_call_every_encoder_as_often_as_the_other(home: Path) -> None:
    for way in (*WAYS, "apart", "."):
        first, other = (json.loads((home / "two" / way / f"calls-{rank}.json").read_text()) for rank in (0, 1))
        assert first == other, way
        assert first["text"] == first["image"] > 0


def test_ranks_of_both_are_those_of_one_to_the_bit(home: Path) -> None:
    task = train_gathered.task_of(home, train_gathered.PAPER, train_gathered.sources_of(home)).float()
    alone = train_gathered.ranks_of(home, task, SINGLE_PROCESS)
    for rank in (0, 1):
        found = load_file(home / "two" / f"ranks-{rank}.safetensors")
        assert all(torch.equal(found[name], value) for name, value in alone.items())
    assert len(alone["rank"].unique()) > 3


def test_without_the_gather_something_else_is_trained(home: Path) -> None:
    name = "weights-0.safetensors"
    assert widest(load_file(home / "one" / "paper" / name), load_file(home / "two" / "apart" / name)) > 1e-3


def launched(home: Path, out: Path, *asked: object) -> Ended:
    """Train as two processes, until the end or until something ends it."""
    out.mkdir(exist_ok=True)
    return run_group(2, stop_spread.__file__, home, out, *asked, spread=FSDP2)


def alone(home: Path, out: Path, *asked: object) -> None:
    """Train as one process until the end, in this one."""
    out.mkdir(exist_ok=True)
    stop_spread.main([str(word) for word in (home, out, *asked)])


def weights(out: Path) -> dict[str, Tensor]:
    return load_file(out / "weights-0.safetensors")


def test_a_run_stopped_in_mid_epoch_goes_on_to_the_same_bits(home: Path, tmp_path: Path) -> None:
    dropout = ("--dropout", 0.2)
    launched(home, tmp_path / "undisturbed", *dropout).well()
    done = launched(home, tmp_path / "stopped", "--signal-at", 5, *dropout)
    assert done.code == 75, done.said
    launched(home, tmp_path / "stopped", *dropout).well()
    expected, found = weights(tmp_path / "undisturbed"), weights(tmp_path / "stopped")
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    steps = [event["step"] for event in events(tmp_path / "stopped" / "run", "train")]
    assert steps == [event["step"] for event in events(tmp_path / "undisturbed" / "run", "train")]


def test_one_process_resumes_what_two_with_shards_stopped(home: Path, tmp_path: Path) -> None:
    alone(home, tmp_path / "undisturbed")
    done = launched(home, tmp_path / "stopped", "--signal-at", 4)
    assert done.code == 75, done.said
    alone(home, tmp_path / "stopped")
    assert widest(weights(tmp_path / "undisturbed"), weights(tmp_path / "stopped")) < ATOL


def test_a_step_whose_loss_breaks_in_one_process_changes_no_shard(home: Path, tmp_path: Path) -> None:
    launched(home, tmp_path / "two", "--break-at", 4).well()
    alone(home, tmp_path / "one", "--break-at", 4)
    assert widest(weights(tmp_path / "one"), weights(tmp_path / "two")) < ATOL
    assert [event["step"] for event in events(tmp_path / "two" / "run", "nonfinite")] == [4]


@pytest.fixture(scope="module")
def launch_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped one, for two processes on the CPU."""
    path = tmp_path_factory.mktemp("launch") / "fsdp2.yaml"
    shipped = shipped_file("launch/fsdp2.yaml").read_text().replace("num_processes: 8", "num_processes: 2")
    path.write_text(f"{shipped}use_cpu: true\n")
    return path


NO_DROPOUT = ("model.item_encoder.fusion.dropout=0", "model.user_encoder.dropout=0")
QUIET = ("hidden_dropout_prob=0", "attention_probs_dropout_prob=0")


def test_a_launched_pretraining_keeps_whole_parts_and_ranks_as_one_process_does(
    tmp_path: Path, world: Path, pmmrec: Pmmrec, launch_file: Path
) -> None:
    quiet = (*NO_DROPOUT, *(f"model.item_encoder.text.architecture.{name}" for name in QUIET))
    # With the usual eps, AdamW makes of a rounding error in a gradient near 0 a step of full length.
    steady = ("train.epochs=1", "train.optimizer.eps=1e-3", "cache=c", "machine.device=cpu")
    settings = (*SMALL, *sources(world), *quiet, *steady)
    with working_in(tmp_path):
        done = launch_pmmrec("pretrain", "pretrain/tiny", *settings, "name=two", "--launch", launch_file)
        assert done.code == 0, done.output
        done = pmmrec("pretrain", "pretrain/tiny", *settings, "name=one")
        assert done.code == 0, done.output
        one, two = (Checkpoint.open(tmp_path / "hub" / name) for name in ("one", "two"))
        assert two.verify() == []
        errors: list[float] = []
        for path in sorted(one.folder.rglob("*.safetensors")):
            name = path.relative_to(one.folder)
            errors.append(widest(load_file(path), load_file(two.folder / name)))
        assert 0 < max(errors) < 1e-5  # float32; measured 7e-8
    validations = [events(tmp_path / "runs" / name, "validation") for name in ("one", "two")]
    assert validations[0][0]["domains"] == validations[1][0]["domains"]  # of the same untrained weights


@pytest.mark.parametrize("way", ["frozen", "adapter"])
def test_frozen_weights_are_sharded_too(tmp_path: Path, world: Path, small_run: Path, pmmrec: Pmmrec, way: str) -> None:
    shutil.copytree(small_run / "hub", tmp_path / "hub")
    settings = ("train.epochs=1", "train.batch_users=16", "train.log_every=1", "cache=c", "machine.device=cpu")
    asked = ("finetune", f"finetune/{way}", "--from", "small", "--on", world / "boutique", *settings)
    with working_in(tmp_path):
        run_group(2, shipped_file("finetune/run.py"), *asked[1:], "name=two", spread=FSDP2).well()
        done = pmmrec(*asked, "name=one")
        assert done.code == 0, done.output
    one, two = (events(tmp_path / "runs" / name, "train") for name in ("one", "two"))
    assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=0.01)  # dropout differs
    assert len(one) == len(two) == 3
