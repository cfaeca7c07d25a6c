"""Compare the steps of a training with those of its naive twin: time, useful work, loss and memory."""
# Shapes: N encoded slots, R rows, D width.

from __future__ import annotations

import contextlib
import multiprocessing
import sys
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from pmmrec.bench.clock import StageClock
from pmmrec.bench.encoder_work import known_work, num_patches
from pmmrec.bench.flops import Work, learns, scores, stack_work
from pmmrec.bench.measure import WARM_UP, MeasuredBatches, StepCost, measure
from pmmrec.bench.memory import PeakMemory
from pmmrec.bench.naive import NaiveTwin, reads_slots
from pmmrec.bench.objective_work import objective_works
from pmmrec.bench.prepared import BenchPlan, PreparedRun, prepared
from pmmrec.bench.work import OWN_ENTRIES
from pmmrec.contracts import Batch
from pmmrec.data.items import ItemReader
from pmmrec.encoders import TextEncoder
from pmmrec.encoders.vision_hf import HFVision
from pmmrec.fusion.attentive import MergeAttention
from pmmrec.homes import expanded
from pmmrec.models.towers import Towers
from pmmrec.train.loop import Loop
from pmmrec.train.optim import build_optimizer
from pmmrec.train.task import TrainingTask
from pmmrec.users.transformer import TransformerUserEncoder

MEMORY_STEPS = WARM_UP  # in the second one AdamW has its moments
Which = Literal["this", "naive"]


@dataclass(frozen=True)
class NaiveCost:
    """What the twin took on the same batches, and what it computes."""

    seconds: float  # of a step, by the clock of the other figures
    flops: float  # of a step, as the formulas have them
    loss: float  # on the first batch, before training and without dropout
    loss_here: float  # the same of this model
    peak_memory_bytes: Mapping[Which, int]  # each measured in a process of its own


class NaiveTraining:
    """Trains a twin."""

    def __init__(self, training: PreparedRun) -> None:
        """Copy the task of a training that has not begun. RecipeError where it has no twin."""
        reads = training.task.recommender.item_encoder.reads
        reader = ItemReader(training.sources.domains, reads, expanded(training.recipe.cache))
        self._device, self._config = training.run.processes.device, training.recipe.train
        self._precision = training.recipe.machine.precision
        self.twin = NaiveTwin(training.task, reader, training.recipe.data.window.size).to(self._device)
        self._optimizer = build_optimizer(self.twin.task, self._config.optimizer)

    def step(self, batch: Batch) -> None:
        """One update."""
        self.twin.train()
        dtype = torch.float16 if self._precision == "fp16" else torch.bfloat16
        for part in (batch, *batch.more):
            with torch.autocast(self._device.type, dtype, enabled=self._precision != "fp32"):
                loss = self.twin.loss(part)
            loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        torch.nn.utils.clip_grad_norm_(self.twin.parameters(), self._config.clip_norm or float("inf"))
        self._optimizer.step()
        self._optimizer.zero_grad()


def measure_against_naive(training: PreparedRun, plan: BenchPlan) -> tuple[StepCost, NaiveCost]:
    """Alternate steps of a training and of its twin on the same batches, then measure the memory of each alone."""
    naive, device = NaiveTraining(training), training.run.processes.device
    first = next(iter(training.batches.epoch(1)))
    training.run.log.say("bench: comparing the losses of both models on the first batch")
    losses = _losses(training, naive, first)
    naive.step(first)  # warms up
    clock, seconds, flops = StageClock(device), list[float](), list[float]()

    def step(batch: Batch, moved: Batch) -> None:
        clock.begin()
        naive.step(batch)
        seconds.append(sum(clock.end()[0].values()))
        flops.append(
            sum(naive_work(training.task, part, naive.twin.num_positions).flops for part in (moved, *moved.more))
        )
        training.run.log.say(f"bench: step {len(seconds)}/{plan.steps} of the naive twin: {seconds[-1]:.3f} s")

    cost = measure(training, plan.steps, step)
    training.run.log.say("bench: measuring the peak memory of each, in a process of its own")
    memory: dict[Which, int] = {which: memory_alone(plan, which) for which in ("this", "naive")}
    cost = replace(cost, peak_memory_bytes=memory["this"])  # without the twin in the same process
    return cost, NaiveCost(sum(seconds) / len(seconds), sum(flops) / len(flops), losses[1], losses[0], memory)


def naive_work(task: TrainingTask, batch: Batch, num_positions: int) -> Work:
    """What the twin computes, by the same formulas: every slot, every token, every position, every block.

    `num_positions`: those to which every window is padded.
    """
    encoder, users = task.recommender.item_encoder, task.recommender.user_encoder
    assert isinstance(encoder, Towers)  # noqa: S101  a twin has been made
    assert isinstance(users, TransformerUserEncoder)  # noqa: S101
    num_users, width = batch.windows.item_index_BS.shape
    num_more, num_window_slots = num_positions - width, num_users * num_positions
    shown = {*batch.windows.item_index_BS.flatten().tolist(), *([0] if num_more else [])}  # padding shows item 0
    num_slots = num_window_slots + batch.items.num_items - len(shown)
    works, num_fused = [], 1
    for tower in encoder.encoders.values():
        length, num_left_out = 0, 1
        if isinstance(tower, HFVision):
            length, num_left_out = num_patches(tower) + tower.num_prefix_tokens, tower.num_prefix_tokens
        elif isinstance(tower, TextEncoder):
            length = tower.tokenizer.max_tokens
        works.append(known_work(tower, np.full(num_slots, length), is_kept=False) or Work())
        num_fused += length - num_left_out
    if isinstance(encoder.fusion, MergeAttention):
        length_N = np.full(num_slots, num_fused)
        works.append(
            stack_work(list(encoder.fusion.blocks), OWN_ENTRIES, length_N, input_learns=True, is_pre_norm=False)
        )
    flows = learns(encoder) or learns(users)
    for of_pass in batch.windows.passes.values():
        length_B = np.full(num_users, num_more + of_pass.is_valid_BL.shape[1])
        works.append(stack_work(list(users.blocks), OWN_ENTRIES, length_B, input_learns=flows, is_pre_norm=False))
    for name, work in objective_works(task, batch)[0].items():
        is_over_slots = reads_slots(task.heads[name])
        works.append(scores(num_window_slots - num_users, num_window_slots, task.width) if is_over_slots else work)
    return Work.total(works)


def memory_alone(plan: BenchPlan, which: Which) -> int:
    """Bytes at the peak of a few steps of one of the two, in a process that does nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(_memory, plan, which).result()


def _memory(plan: BenchPlan, which: Which) -> int:
    with contextlib.redirect_stdout(sys.stderr), prepared(plan) as training:
        device = training.run.processes.device
        if which == "this":
            source = MeasuredBatches(training.batches, StageClock(device), 0, lambda *_: None)
            loop = Loop(training.recipe.train, training.task, source, training.run.processes, training.run.log)
            memory = PeakMemory(device)
            loop.fit()
            return memory.growth()
        naive = NaiveTraining(training)
        memory = PeakMemory(device)
        for _, batch in zip(range(MEMORY_STEPS), training.batches.epoch(1), strict=False):
            naive.step(batch)
        return memory.growth()


def _losses(training: PreparedRun, naive: NaiveTraining, batch: Batch) -> tuple[float, float]:
    """The loss of both models on one batch, without dropout."""
    task, device = training.task.to(training.run.processes.device), training.run.processes.device
    moved, total, other = training.batches.to_device(batch, device), 0.0, 0.0
    task.eval()
    naive.twin.eval()
    with torch.no_grad():
        for part, moved_part in zip((batch, *batch.more), (moved, *moved.more), strict=True):
            figures = task(moved_part)
            total += sum(
                float(weight * figures[name][0] / figures[name][1].clamp(min=1))
                for name, weight in task.weights.items()
            )
            other += float(naive.twin.loss(part))
    task.train()
    return total, other
