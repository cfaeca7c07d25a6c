"""Two processes train one model: the same weights on both, and those of one process that saw both shares."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import train_shares
from command_line import SMALL, Pmmrec, sources, working_in
from safetensors.torch import load_file
from torch import Tensor
from worker_group import run_group

from pmmrec.contracts import Term
from pmmrec.shipped import shipped_file
from pmmrec.train.optim import build_optimizer
from pmmrec.train.prepare import Sources
from pmmrec.train.schedule import build_scheduler

Share = dict[str, Term]

PROGRAM = shipped_file("pretrain/run.py")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """What `train_shares.py` left when two processes ran it."""
    out = tmp_path_factory.mktemp("shares")
    run_group(2, train_shares.__file__, world / "boutique", out).well()
    return out


def _over_both(weights: dict[str, float], shares: list[Share]) -> Tensor:
    """The sum over all users of a step, divided by the count over all."""
    parts = []
    for name, weight in weights.items():
        count = sum(share[name].count for share in shares)
        parts.append(weight * sum(share[name].sum for share in shares) / count.clamp(min=1))
    return torch.stack(parts).sum()


def _mean_of_means(weights: dict[str, float], shares: list[Share]) -> Tensor:
    """What plain data parallelism computes: every process counts the same, however many users it has."""
    means = [torch.stack([weight * share[name].mean for name, weight in weights.items()]).sum() for share in shares]
    return torch.stack(means).mean()


def _one_process(
    world: Path, cache: Path, batch_users: int, loss_of: Callable[[dict[str, float], list[Share]], Tensor]
) -> tuple[dict[str, Tensor], list[float]]:
    """Train in this process on both shares of every step, written out."""
    opened = Sources.open([world / "boutique"])
    task, config = train_shares.task_for(opened).train(), train_shares.settings(batch_users)
    reader = train_shares.reader_of(opened, cache)
    shares = [train_shares.share_of(opened, reader, task, batch_users, rank) for rank in (0, 1)]
    optimizer = build_optimizer(task, config.optimizer)
    scheduler = build_scheduler(optimizer, config.optimizer, shares[0].steps_per_epoch, shares[0].steps_per_epoch)
    losses = []
    for step in range(shares[0].steps_per_epoch):
        terms = [task.terms(task.views(share.build(0, step))) for share in shares]
        loss = loss_of(task.weights, terms)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), config.clip_norm)
        optimizer.step()
        scheduler.step()
    return task.state_dict(), losses


def _widest(first: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert first.keys() == other.keys()
    return max((first[name].double() - other[name].double()).abs().max().item() for name in first)


@pytest.mark.parametrize("batch_users", train_shares.UNEVEN)
def test_both_processes_end_with_the_same_bits(trained: Path, batch_users: int) -> None:
    first, other = (load_file(trained / str(batch_users) / f"{rank}.safetensors") for rank in (0, 1))
    assert first.keys() == other.keys()
    assert all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("batch_users", train_shares.UNEVEN)
def test_uneven_shares_train_what_one_process_with_both_would(
    trained: Path, world: Path, tmp_path: Path, batch_users: int
) -> None:
    together = load_file(trained / str(batch_users) / "0.safetensors")
    alone, losses = _one_process(world, tmp_path, batch_users, _over_both)
    assert _widest(together, alone) < 1e-12  # float64, weights near 1; measured 0
    lines = (trained / str(batch_users) / "events.jsonl").read_text().splitlines()
    steps = [event for event in map(json.loads, lines) if event["event"] == "train"]
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=1e-6)  # logged in float32
    assert max(step["users"] for step in steps) == batch_users
    assert sum(step["users"] for step in steps) == 40


def test_a_mean_of_local_means_would_train_something_else(trained: Path, world: Path, tmp_path: Path) -> None:
    together = load_file(trained / "3" / "0.safetensors")
    naive, _ = _one_process(world, tmp_path, 3, _mean_of_means)
    assert _widest(together, naive) > 1e-3


def test_every_process_names_the_broken_item_that_one_of_them_saw(trained: Path) -> None:
    told = [json.loads((trained / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert told[0] == told[1]
    assert len(told[0]["told"]) == 2  # with negatives of each process, and with those of all
    assert all(f"first seen in vectors of items boutique/{told[0]['item']};" in text for text in told[0]["told"])


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory, world: Path) -> tuple[Path, str]:
    """The run of the `small_run` fixture once more, by two processes: its folder and what was said."""
    home = tmp_path_factory.mktemp("two")
    settings = (*SMALL, *sources(world), "name=small", "train.epochs=2", "cache=c", "machine.device=cpu")
    return home, run_group(2, PROGRAM, "pretrain/tiny", *settings, folder=home).well()


def _events(home: Path, kind: str, name: str = "small") -> list[dict]:
    lines = (home / "runs" / name / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_two_processes_run_a_pretraining_to_its_end(pretrained: tuple[Path, str]) -> None:
    home, _ = pretrained
    environment = json.loads((home / "runs" / "small" / "environment.json").read_text())
    assert environment["processes"] == 2
    for name in ("runs/small/metrics.json", "runs/small/ranks-bazaar.parquet", "hub/small/model_index.json"):
        assert (home / name).is_file(), name


def test_only_one_process_speaks(pretrained: tuple[Path, str]) -> None:
    home, said = pretrained
    lines = said.splitlines()
    assert sum(line.startswith("run runs/small  2 processes on cpu:0, 1 thread each, ") for line in lines) == 1
    assert sum(line.startswith("published:") for line in lines) == 1
    spoken = [line.split()[1] for line in lines if line.startswith("step")]
    written = [f"{event['step']}/16" for event in _events(home, "train")]
    assert spoken == written == ["1/16", "2/16", "4/16", "6/16", "8/16", "10/16", "12/16", "14/16", "16/16"]


def test_the_users_of_every_step_are_shared_out(pretrained: tuple[Path, str], small_run: Path) -> None:
    two, one = _events(pretrained[0], "train"), _events(small_run, "train")
    for figure in ("step", "users", "slots", "items_encoded"):
        assert [event[figure] for event in two] == [event[figure] for event in one]
    # negatives are those of all processes
    for figure in ("dap/chance", "rcl/chance", "nid/chance"):
        assert [event[figure] for event in two] == pytest.approx([event[figure] for event in one], rel=1e-5)


def test_two_processes_start_from_the_weights_of_one(pretrained: tuple[Path, str], small_run: Path) -> None:
    two, one = _events(pretrained[0], "validation"), _events(small_run, "validation")
    assert two[0]["domains"] == one[0]["domains"]
    assert [event["epoch"] for event in two] == [0, 1, 2]


def test_with_dropout_two_processes_train_with_other_masks(pretrained: tuple[Path, str], small_run: Path) -> None:
    """Without it they train what one process does (above); with as many processes masks are the same (test_spread)."""
    two, one = _events(pretrained[0], "train")[0], _events(small_run, "train")[0]
    assert two["loss"] != one["loss"]
    assert two["loss"] == pytest.approx(one["loss"], rel=0.02)  # as with another seed


def test_two_processes_train_from_the_states_that_one_computed(tmp_path: Path, world: Path, pmmrec: Pmmrec) -> None:
    frozen = tuple(f"model.item_encoder.{encoder}.trainable_blocks=0" for encoder in ("text", "vision"))
    settings = (*SMALL, *sources(world), *frozen, "train.epochs=1", "cache=c", "machine.device=cpu")
    run_group(2, PROGRAM, "pretrain/tiny", *settings, "name=small", folder=tmp_path).well()
    assert len(list((tmp_path / "c").glob("*prefix-*"))) == 4  # texts and images of two platforms
    with working_in(tmp_path):
        alone = pmmrec("pretrain", "pretrain/tiny", *settings, "name=alone", "prefix_cache=off")
    assert alone.code == 0, alone.output
    two, one = (
        [event for event in _events(tmp_path, "validation", name) if event["epoch"] == 0] for name in ("small", "alone")
    )
    assert two[0]["domains"] == one[0]["domains"]
    assert (tmp_path / "hub" / "small" / "model_index.json").is_file()


def test_batch_statistics_that_processes_would_share_out_are_refused(
    tmp_path: Path, world: Path, pmmrec: Pmmrec
) -> None:
    def recipe(blocks: object) -> tuple[str, ...]:
        small = (setting for setting in SMALL if ".vision." not in setting)
        layout = "type: timm, architecture: {name: resnet18, channels: [8, 8, 16, 16]}, image_size: 32, pool: mean"
        vision = f"model.item_encoder.vision={{{layout}, trainable_blocks: {blocks}}}"
        return "pretrain/tiny", *small, *sources(world), vision, "train.epochs=1", "cache=c", "machine.device=cpu"

    told = "on 2 processes: vision_encoder.backbone.layer4.0.bn1 keeps statistics of whole batches"
    with working_in(tmp_path):
        planned = pmmrec("pretrain", *recipe(1), "--dry-run", "--launch", "two_cpu")
    assert planned.code == 2
    assert told in planned.output
    done = run_group(2, PROGRAM, *recipe(1), folder=tmp_path)
    assert done.code == 2, done.said
    assert f"error: launch with DDP {told}" in done.said
    assert done.said.count("or train in one process") == 1  # both processes met it, one says it
    run_group(2, PROGRAM, *recipe(0), "name=frozen", folder=tmp_path).well()
    again = run_group(2, PROGRAM, *recipe(0), "name=frozen", folder=tmp_path)
    assert again.code == 2, again.said
    assert again.said.count("error: runs/frozen: this run exists; choose another name") == 1  # the main process met it
    assert again.said.count("error: ") == 1
