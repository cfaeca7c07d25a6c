"""Two processes under DeepSpeed train the curve of one: `make spread`, since its first start builds for minutes."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import stop_spread
import torch
import train_gathered
import train_spread
import train_systems
from command_line import SMALL, Pmmrec, launch_pmmrec, sources, working_in
from safetensors.torch import load_file
from torch import Tensor
from torchrun import torchrun, zero

from pmmrec.evaluation.share import SINGLE_PROCESS
from pmmrec.shipped import shipped_file
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.zoo.checkpoint import Checkpoint

STAGES = (1, 2, 3)
WAYS = {**{kind: kind for kind in train_gathered.KINDS}, "checkpointed": "paper"}
LOSS_RTOL = 1e-5  # float32 beside one process in float64; measured at most 4e-6
WEIGHT_ATOL = 5e-6  # values near 1; measured at most 1.1e-6

pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `train_gathered` left in `one`, as one process."""
    folder = tmp_path_factory.mktemp("zero")
    train_gathered.make_home(folder)
    processes = Processes(MachineConfig(device="cpu"))
    for kind in train_gathered.KINDS:
        train_gathered.train(folder, folder / "one" / kind, kind, processes)
    return folder


@pytest.fixture(scope="module", params=STAGES)
def trained(request: pytest.FixtureRequest, home: Path) -> Path:
    """What `train_spread` left of a stage."""
    out = home / f"zero{request.param}"
    ended(torchrun(2, train_spread.__file__, home, out, spread=zero(request.param)))
    return out


def ended(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout + done.stderr


def widest(first: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert first.keys() == other.keys()
    return max((first[name].double() - other[name].double()).abs().max().item() for name in first)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.parametrize("way", WAYS)
def test_the_curve_is_that_of_one_process(home: Path, trained: Path, way: str) -> None:
    one, two = events(home / "one" / WAYS[way], "train"), events(trained / way, "train")
    assert len(one) == len(two) > 10
    assert [event["loss"] for event in two] == pytest.approx([event["loss"] for event in one], rel=LOSS_RTOL)
    name = "weights-0.safetensors"
    assert widest(load_file(home / "one" / WAYS[way] / name), load_file(trained / way / name)) < WEIGHT_ATOL


def test_the_main_process_alone_takes_whole_weights_to_its_cpu(trained: Path) -> None:
    for way in WAYS:
        held = [json.loads((trained / way / f"kept-{rank}.json").read_text()) for rank in (0, 1)]
        assert held[0] > 10
        assert held[1] == 0


def test_both_call_every_encoder_as_often_as_the_other(trained: Path) -> None:
    for way in (*WAYS, "apart", "."):
        first, other = (json.loads((trained / way / f"calls-{rank}.json").read_text()) for rank in (0, 1))
        assert first == other, way
        assert first["text"] == first["image"] > 0


def test_ranks_of_both_are_those_of_one_to_the_bit(home: Path, trained: Path) -> None:
    task = train_gathered.task_of(home, train_gathered.PAPER, train_gathered.sources_of(home)).float()
    alone = train_gathered.ranks_of(home, task, SINGLE_PROCESS)
    for rank in (0, 1):
        found = load_file(trained / f"ranks-{rank}.safetensors")
        assert all(torch.equal(found[name], value) for name, value in alone.items())


@pytest.mark.parametrize("stage", STAGES)
def test_the_curves_of_systems_by_ids_are_those_of_one_process(home: Path, stage: int) -> None:
    out = home / f"systems-zero{stage}"
    ended(torchrun(2, train_systems.__file__, home, out, spread=zero(stage)))
    for name in train_systems.SYSTEMS:
        alone = home / f"systems-one{stage}" / name
        train_systems.train(home, alone, name, Processes(MachineConfig(device="cpu")))
        one, two = events(alone, "train"), events(out / name, "train")
        assert len(one) == len(two) > 5
        losses = [event["loss"] for event in one]
        assert [event["loss"] for event in two] == pytest.approx(losses, rel=LOSS_RTOL), name
        file = "weights-0.safetensors"
        assert widest(load_file(alone / file), load_file(out / name / file)) < WEIGHT_ATOL, name


def launched(home: Path, out: Path, stage: int, *asked: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    return torchrun(processes, stop_spread.__file__, home, out, *asked, spread=zero(stage))


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_stopped_in_mid_epoch_goes_on_to_the_same_bits(home: Path, tmp_path: Path, stage: int) -> None:
    undisturbed, stopped, dropout = tmp_path / "undisturbed", tmp_path / "stopped", ("--dropout", 0.2)
    ended(launched(home, undisturbed, stage, *dropout))
    done = launched(home, stopped, stage, "--signal-at", 5, *dropout)
    assert "exitcode  : 75" in done.stderr, done.stdout + done.stderr
    ended(launched(home, stopped, stage, *dropout))
    expected, found = (load_file(out / "weights-0.safetensors") for out in (undisturbed, stopped))
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    steps = [[event["step"] for event in events(out / "run", "train")] for out in (undisturbed, stopped)]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("stage", STAGES)
def test_a_step_whose_loss_breaks_in_one_process_changes_no_weight(home: Path, tmp_path: Path, stage: int) -> None:
    ended(launched(home, tmp_path / "two", stage, "--break-at", 4))
    (tmp_path / "one").mkdir()
    stop_spread.main([str(home), str(tmp_path / "one"), "--break-at", "4"])
    one, two = (load_file(tmp_path / name / "weights-0.safetensors") for name in ("one", "two"))
    assert widest(one, two) < WEIGHT_ATOL
    assert [event["step"] for event in events(tmp_path / "two" / "run", "nonfinite")] == [4]


@pytest.fixture(scope="module")
def stopped(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ZeRO-2 that was stopped after a few steps."""
    out = tmp_path_factory.mktemp("stopped") / "out"
    done = launched(home, out, 2, "--signal-at", 3)
    assert "exitcode  : 75" in done.stderr, done.stdout + done.stderr
    return out


@pytest.mark.parametrize(
    ("stage", "processes", "told"),
    [
        (2, 1, "ZeRO-2 saved it on 2 processes, and only as many can read it, not 1; start 2"),
        (3, 2, "kept as ZeRO-2, and this launch reads ZeRO-3; go on with the first launch"),
    ],
)
def test_another_number_of_processes_or_stage_is_told_what_kept_the_state(
    home: Path, stopped: Path, tmp_path: Path, stage: int, processes: int, told: str
) -> None:
    shutil.copytree(stopped, tmp_path / "out")
    done = launched(home, tmp_path / "out", stage, processes=processes)
    assert done.returncode != 0
    assert told in done.stderr, done.stderr


@pytest.mark.parametrize("harm", ["changed", "added"])
def test_no_pickle_is_read_that_is_not_as_it_was_written(home: Path, stopped: Path, tmp_path: Path, harm: str) -> None:
    shutil.copytree(stopped, tmp_path / "out")
    files = sorted((tmp_path / "out" / "run" / "state").glob("step-*/shares/zero/*optim_states.pt"))
    assert len(files) == 2
    if harm == "changed":
        files[0].write_bytes(files[0].read_bytes()[:-1] + b"!")
    else:
        shutil.copy(files[0], files[0].with_name("bf16_" + files[0].name))
    done = launched(home, tmp_path / "out", 2)
    assert done.returncode != 0
    told = {"changed": "was changed after it was written", "added": "was not written with it"}[harm]
    assert told in done.stdout + done.stderr
    assert "none of 1 states can be read" in done.stderr


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_is_full_for_one_process_is_told_and_nobody_waits(home: Path, tmp_path: Path, stage: int) -> None:
    done = launched(home, tmp_path / "out", stage, "--signal-at", 3, "--fills-disk")
    assert done.returncode != 0
    assert "and could not keep its state: " in done.stderr, done.stderr
    assert "shares.incomplete: cannot be written" in done.stderr
    assert not list((tmp_path / "out" / "run" / "state").glob("step-*"))


def test_a_state_whose_shares_lie_on_several_disks_is_not_kept(home: Path, tmp_path: Path) -> None:
    with working_in(tmp_path):
        done = launched(home, Path("out"), 2, "--signal-at", 3, "--own-disk")
    assert done.returncode != 0
    assert "and could not keep its state: out/run/state/shares.incomplete/zero/zero_pp_rank_1_" in done.stderr
    assert "it is not found here; runs=out must lie on a disk that all machines share" in done.stderr
    assert not list((tmp_path / "out" / "run" / "state").glob("step-*"))


def test_a_weight_that_the_last_update_broke_is_named_by_whoever_holds_it(home: Path, tmp_path: Path) -> None:
    done = launched(home, tmp_path / "out", 3, "--spoil")
    assert done.returncode != 0
    assert "DivergenceError: step 15: its update left " in done.stderr, done.stdout + done.stderr


NO_DROPOUT = ("model.item_encoder.fusion.dropout=0", "model.user_encoder.dropout=0")
QUIET = ("hidden_dropout_prob=0", "attention_probs_dropout_prob=0")


@pytest.mark.parametrize("stage", STAGES)
def test_a_launched_pretraining_keeps_whole_parts(tmp_path: Path, world: Path, pmmrec: Pmmrec, stage: int) -> None:
    shipped = shipped_file(f"launch/zero{stage}.yaml").read_text().replace("num_processes: 8", "num_processes: 2")
    (tmp_path / "zero.yaml").write_text(f"{shipped}use_cpu: true\n")
    quiet = (*NO_DROPOUT, *(f"model.item_encoder.text.architecture.{name}" for name in QUIET))
    # With the usual eps, AdamW makes of a rounding error in a gradient near 0 a step of full length.
    steady = ("train.epochs=1", "train.optimizer.eps=1e-3", "cache=c", "machine.device=cpu")
    settings = (*SMALL, *sources(world), *quiet, *steady)
    with working_in(tmp_path):
        done = launch_pmmrec("pretrain", "pretrain/tiny", *settings, "name=two", "--launch", tmp_path / "zero.yaml")
        assert done.code == 0, done.output
        done = pmmrec("pretrain", "pretrain/tiny", *settings, "name=one")
        assert done.code == 0, done.output
    one, two = (Checkpoint.open(tmp_path / "hub" / name) for name in ("one", "two"))
    assert two.verify() == []
    errors: list[float] = []
    for path in sorted(one.folder.rglob("*.safetensors")):
        first, other = load_file(path), load_file(two.folder / path.relative_to(one.folder))
        assert {name: tensor.shape for name, tensor in first.items()} == {n: t.shape for n, t in other.items()}
        errors.append(widest(first, other))
    assert 0 < max(errors) < 1e-5  # float32; measured 1.2e-7
    validations = [events(tmp_path / "runs" / name, "validation") for name in ("one", "two")]
    assert validations[0][0]["domains"] == validations[1][0]["domains"]  # of the same untrained weights
