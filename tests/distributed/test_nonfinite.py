"""A loss that is NaN in one process of two holds the step back in both."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
import train_stopped
from safetensors.torch import load_file
from torch import Tensor
from worker_group import run_group

from pmmrec.data.batches import DataConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.log import RunLog
from pmmrec.train.optim import build_optimizer
from pmmrec.train.prepare import Batches, Sources
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.schedule import build_scheduler

STEP = 4


def _trained(out: Path, world: Path, skip: int) -> str:
    """Two processes, the second of which breaks; what was said."""
    asked = ("--break-at", STEP, "--rank", 1, "--skip", skip)
    done = run_group(2, train_stopped.__file__, world / "boutique", out, *asked)
    assert (done.code == 0) == (skip > 0), done.said
    return done.said


def _without_the_step(world: Path, out: Path) -> dict[str, Tensor]:
    """One process, written out, in which one step makes no update."""
    sources = Sources.open([world / "boutique"])
    task, reader = train_stopped.task_for(sources).train(), train_stopped.reader_of(sources, out)
    config, silent = TrainConfig.model_validate(train_stopped.SETTINGS), RunLog(None, is_main=False)
    batches = Batches(DataConfig(), sources, reader, task, 8, 1, Processes(MachineConfig(device="cpu")), silent)
    optimizer = build_optimizer(task, config.optimizer)
    scheduler = build_scheduler(optimizer, config.optimizer, 2 * batches.steps_per_epoch, batches.steps_per_epoch)
    for number, batch in enumerate((*batches.epoch(1), *batches.epoch(2)), start=1):
        optimizer.zero_grad()
        terms = task.terms(task.views(batch))
        torch.stack([task.weights[name] * term.mean for name, term in terms.items()]).sum().backward()
        torch.nn.utils.clip_grad_norm_(task.parameters(), config.clip_norm)
        if number != STEP:
            optimizer.step()
        scheduler.step()
    return task.state_dict()


@pytest.fixture(scope="module")
def left_out(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    out = tmp_path_factory.mktemp("left-out")
    said = _trained(out, world, skip=1)
    assert f"warning: step {STEP}: loss of brittle is not finite; first seen in losses of process 1 of 2" in said
    return out


def test_both_train_on_as_if_the_step_had_never_updated(left_out: Path, world: Path) -> None:
    expected, first, last = (
        _without_the_step(world, left_out),
        *(load_file(left_out / f"{r}.safetensors") for r in (0, 1)),
    )
    assert first.keys() == last.keys() == expected.keys()
    assert all(torch.equal(first[name], last[name]) for name in first)
    widest = max((first[name] - expected[name]).abs().max().item() for name in first)
    assert widest < 1e-12  # float64, weights near 1; measured 2e-16


def test_the_step_is_written_down_with_what_each_process_saw(left_out: Path) -> None:
    written = json.loads((left_out / "run" / f"nonfinite-{STEP:08d}.json").read_text())
    sound, broken = written["processes"]
    assert (written["step"], sound["process"], broken["process"]) == (STEP, 0, 1)
    assert math.isfinite(sound["losses"]["brittle"])
    assert broken["losses"]["brittle"] == "nan"
    assert len(sound["users"]) + len(broken["users"]) == 8
    assert not {*sound["users"]} & {*broken["users"]}
    assert all(name.startswith("boutique/") for name in sound["items"] + broken["items"])


def test_both_stop_with_the_same_words_where_none_may_be_left_out(tmp_path: Path, world: Path) -> None:
    _trained(tmp_path, world, skip=0)
    first, last = ((tmp_path / f"told-{rank}.txt").read_text() for rank in (0, 1))
    assert first == last
    assert first.startswith(
        f"step {STEP}: loss of brittle is not finite; first seen in losses of process 1 of 2; no update"
    )
