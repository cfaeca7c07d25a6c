"""Time the first batch of a training with several numbers of threads, and compute with the best one from then on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from pmmrec.contracts import Batch
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches
from pmmrec.train.run import Run
from pmmrec.train.spread import WHOLE
from pmmrec.train.threads import measured


def settle_threads(run: Run, loop: Loop, batches: Batches) -> None:
    """Choose the number of threads by measurement, unless it is settled. Every process must call it.

    Forward and backward of the first batch are timed; no weight, gradient, buffer, random number or batch of the run
    changes, so the run is equal to the bit to one in which this number was set. All processes take the number of the
    main one. On a GPU, and where weights are sharded, nothing is measured.
    """
    choice, processes = run.threads, run.processes
    most = min(one.most or 1 for one in processes.gathered([choice]))  # 1: of one process it is settled
    if most > 1 and processes.device.type == "cpu" and processes.spread in WHOLE:
        batch = batches.to_device(batches.first(), processes.device)
        with _unchanged(loop.task):
            loop.task.begin_epoch(1)
            choice = measured(most, lambda: _forward_backward(loop, batch), is_alone=processes.world == 1)
        choice = processes.from_main(choice)
    run.use_threads(choice)


def _forward_backward(loop: Loop, batch: Batch) -> None:
    """A step without its update. Gradients are computed and not kept, and DDP does not see them."""
    learning = [tensor for tensor in loop.task.parameters() if tensor.requires_grad]
    for part in (batch, *batch.more):
        with loop.processes.accelerator.autocast():
            figures = loop.task(part)
        loss = torch.stack([weight * figures[name][0] for name, weight in loop.task.weights.items()]).sum()
        torch.autograd.grad(loss, learning, allow_unused=True)


@contextmanager
def _unchanged(task: nn.Module) -> Iterator[None]:
    """Train in the block; random generators and buffers are then as before."""
    before = [buffer.clone() for buffer in task.buffers()]
    task.train()
    with torch.random.fork_rng(devices=()):
        yield
    for buffer, value in zip(task.buffers(), before, strict=True):
        buffer.copy_(value)
