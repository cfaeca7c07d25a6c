"""Train what `train_gathered` trains, as one process of several that share out weights: `... train_spread.py HOME OUT`.

The environment says how: `ACCELERATE_USE_FSDP=true` for FSDP2.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from train_gathered import KINDS, PAPER, SEED, SILENT, counted_calls, ranks_of, reader_of, sources_of, task_of, train

from pmmrec.data.batches import DataConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches
from pmmrec.train.processes import MachineConfig, Processes

# The same training as one of those, done in another way.
WAYS = {"checkpointed": ("paper", {"checkpoint_activations": True}), "apart": ("paper", {"gather": False})}


def untrained(home: Path, processes: Processes) -> Loop:
    """A training that has not begun, in float32 as ranking is."""
    sources = sources_of(home)
    task = task_of(home, PAPER, sources).float()
    reader, config = reader_of(home, task, sources), TrainConfig(epochs=1, batch_users=6)
    return Loop(
        config, task, Batches(DataConfig(), sources, reader, task, 6, SEED, processes, SILENT), processes, SILENT
    )


def held(loop: Loop) -> dict[str, object]:
    """How many numbers this process holds, how many there are, and what kinds of blocks are gathered one by one."""
    tensors = [p for p in loop.task.parameters() if isinstance(p, DTensor)]
    blocks = [m for m in loop.task.modules() if isinstance(m, FSDPModule) and m is not loop.task]
    return {
        "own": sum(tensor.to_local().numel() for tensor in tensors),
        "whole": sum(parameter.numel() for parameter in loop.task.parameters()),
        "blocks": sorted({type(block).__name__.removeprefix("FSDP") for block in blocks}),
    }


def main(home: Path, out: Path) -> None:
    """Every kind and way, one after another; then ranks of a model that is not trained."""
    processes = Processes(MachineConfig(device="cpu"))
    dtype = torch.float32 if processes.spread.is_deepspeed else torch.float64
    for kind in KINDS:
        train(home, out / kind, kind, processes, dtype)
    for way, (kind, settings) in WAYS.items():
        train(home, out / way, kind, processes, dtype, **settings)
    loop = untrained(home, processes)
    (out / f"held-{processes.rank}.json").write_text(json.dumps(held(loop)))
    calls = counted_calls(loop.task)
    with loop.gathered_parameters():
        ranks = ranks_of(home, loop.task, processes)
    save_file(ranks, out / f"ranks-{processes.rank}.safetensors")
    (out / f"calls-{processes.rank}.json").write_text(json.dumps(calls))
    processes.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
