"""Several processes agree on when to stop, and resume as if never stopped, also with another number of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import train_sharded
import train_stopped
from safetensors.torch import load_file
from stop_recipe import assert_goes_on
from torch import Tensor
from worker_group import Ended, run_group

from pmmrec.shipped import shipped_file

TIMES = ("time_s", "seconds", "users_per_s", "peak_memory_bytes")


def launched(out: Path, world: Path, processes: int, *asked: object) -> Ended:
    """Train until the end, or until something ends it."""
    out.mkdir(exist_ok=True)
    return run_group(processes, train_stopped.__file__, world / "boutique", out, *asked)


def finish(out: Path, world: Path, processes: int) -> None:
    launched(out, world, processes).well()


def stop(
    out: Path, world: Path, processes: int, *, at: int, where: str = "step", rank: int = 0, sign: str = "SIGUSR1"
) -> str:
    """Train until all processes have ended on behalf of one that got a signal; the newest state then."""
    asked = ("--where", where, "--at", at, "--rank", rank, "--comes", sign, "--every-steps", 3)
    done = launched(out, world, processes, *asked)
    assert done.code == 75, done.said
    told = [(out / f"told-{rank}.txt").read_text() for rank in range(processes)]
    assert len(set(told)) == 1  # also at the same step
    assert told[0].split(": ", 1)[1].split(";")[0] == f"ended by {sign}"
    return newest_state(out)


def newest_state(out: Path) -> str:
    return max(path.name for path in (out / "run" / "state").glob("step-*"))


def assert_same_bits(out: Path, undisturbed: Path) -> None:
    for name in ("0.safetensors", "1.safetensors", "run/checkpoint/best.safetensors"):
        expected, found = load_file(undisturbed / name), load_file(out / name)
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, expected[key]) for key, tensor in found.items())
    assert events(out) == events(undisturbed)


def weights(out: Path, rank: int = 0) -> dict[str, Tensor]:
    return load_file(out / f"{rank}.safetensors")


def events(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: figure for name, figure in event.items() if name not in TIMES} for event in lines]


def widest(first: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert first.keys() == other.keys()
    return max((first[name] - other[name]).abs().max().item() for name in first)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """Two processes that nobody stopped."""
    out = tmp_path_factory.mktemp("undisturbed")
    finish(out, world, 2)
    return out


def test_two_processes_stop_for_a_signal_to_one_and_go_on_to_the_same_bits(
    tmp_path: Path, world: Path, undisturbed: Path
) -> None:
    stop(tmp_path, world, 2, at=7, rank=1)
    finish(tmp_path, world, 2)
    assert_same_bits(tmp_path, undisturbed)


def test_drawn_negatives_are_the_same_after_a_stop_and_with_another_number_of_processes(
    tmp_path: Path, world: Path
) -> None:
    for name in ("whole", "stopped", "others"):
        asked = (world / "boutique", tmp_path / name, "--drawn")
        (tmp_path / name).mkdir()
        if name != "whole":
            stops = ("--at", 7, "--every-steps", 3)
            assert run_group(2, train_stopped.__file__, *asked, *stops).code == 75
        run_group(1 if name == "others" else 2, train_stopped.__file__, *asked).well()
    assert_same_bits(tmp_path / "stopped", tmp_path / "whole")
    assert widest(weights(tmp_path / "others"), weights(tmp_path / "whole")) < 1e-12  # float64; measured 0


@pytest.mark.parametrize("recipe", ["gru4rec", "bert4rec", "dssm", "dssm_variant"])
def test_a_recipe_of_a_system_goes_on_to_the_same_bits(tmp_path: Path, world: Path, recipe: str) -> None:
    asked = (shipped_file("finetune/run.py"), f"zoo/ids/small/{recipe}", "--from", "none", "--on", world / "boutique")
    quick = ("model.width=8", "train.epochs=2", "train.batch_users=16", "train.log_every=1", "machine.device=cpu")
    assert_goes_on(tmp_path, recipe, *asked, *quick, "cache=c")


def test_wherever_a_signal_comes_all_stop_at_the_next_boundary_and_nothing_is_lost(
    tmp_path: Path, world: Path, undisturbed: Path
) -> None:
    assert stop(tmp_path, world, 2, where="saving", at=1, sign="SIGTERM") == "step-00000000-epoch-0001"
    assert stop(tmp_path, world, 2, where="keeping", at=1, rank=1) == "step-00000005-epoch-0001"
    assert stop(tmp_path, world, 2, where="ranking", at=1, rank=1, sign="SIGTERM") == "step-00000005-epoch-0001"
    done = launched(tmp_path, world, 2, "--at", 3, "--comes", "SIGTERM,SIGUSR1", "--every-steps", 2)
    assert done.code == 75, done.said
    assert newest_state(tmp_path) == "step-00000006-epoch-0002"  # step 8 was left amid, at once
    finish(tmp_path, world, 2)
    assert_same_bits(tmp_path, undisturbed)


def test_a_stop_that_loses_its_state_is_an_error_of_the_machine_for_every_process(tmp_path: Path, world: Path) -> None:
    done = launched(tmp_path, world, 2, "--at", 2, "--rank", 1, "--blocked")
    assert done.code == 4, done.said
    told = [(tmp_path / f"told-{rank}.txt").read_text() for rank in range(2)]
    assert told[0] == told[1]
    assert told[0].startswith("step 3: ended by SIGUSR1 and could not keep its state: ")


def test_two_processes_then_one_then_four_train_what_two_would(tmp_path: Path, world: Path, undisturbed: Path) -> None:
    stop(tmp_path, world, 2, at=2)
    stop(tmp_path, world, 1, at=3)
    finish(tmp_path, world, 4)
    for rank in range(4):
        assert widest(weights(tmp_path, rank), weights(undisturbed)) < 1e-12  # float64, weights near 1; measured 0
    steps = [event["step"] for event in events(tmp_path) if event["event"] == "train"]
    assert steps == list(range(1, 11))
    assert [event["users"] for event in events(tmp_path) if event["event"] == "train"] == [8] * 10


def test_a_sharded_model_resumes_with_another_number_of_shards(tmp_path: Path) -> None:
    for name, sizes in (("one", (1, 1, 1)), ("others", (2, 1, 4))):
        (tmp_path / name).mkdir()
        for processes in sizes:
            run_group(processes, train_sharded.__file__, tmp_path / name).well()
    one, others = (load_file(tmp_path / name / "weights-9.safetensors") for name in ("one", "others"))
    assert widest(one, others) < 1e-12  # float64, weights near 1; measured 0
