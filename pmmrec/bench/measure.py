"""Measure the steps of a training: useful work, time of each stage, memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pmmrec.bench.clock import BACKWARD, StageClock
from pmmrec.bench.flops import Work
from pmmrec.bench.memory import PeakMemory
from pmmrec.bench.peaks import Peaks, measure_peaks
from pmmrec.bench.prepared import PreparedRun
from pmmrec.bench.work import StepWork, WorkMeter
from pmmrec.contracts import Batch
from pmmrec.encoders import Encoder
from pmmrec.models.towers import Towers
from pmmrec.train.loop import Loop
from pmmrec.train.prepare import Batches
from pmmrec.train.syncs import HostSyncs
from pmmrec.train.thread_trial import settle_threads
from pmmrec.users import UserEncoder

WARM_UP = 2
FETCH, MOVE, OBJECTIVES, OPTIMISER, LOG = "fetch", "to device", "objectives", "optimiser", "log"
PARTS = {"text_encoder": "text", "vision_encoder": "vision", "fusion": "fusion"}
Between = Callable[[Batch, Batch], None]  # called after a step with its batch, as read and on the device


@dataclass(frozen=True)
class StageCost:
    """What one stage takes of a step, on average."""

    name: str
    seconds: float
    flops: float
    num_bytes: float
    floor_s: float  # 0: the stage has no useful work of its own


@dataclass(frozen=True)
class ComputedWork:
    """What one step really computed."""

    flops: float  # by torch's counter; a fused attention kernel counts what it computes once more
    tokens: float  # rows that the blocks of the text encoder saw, per block
    positions: float  # the same of the user encoder
    host_syncs: int  # operations of the second step, logging left out, after which the host waits for a GPU


@dataclass(frozen=True)
class StepCost:
    """The cost of a step, on average over the measured ones."""

    clock: str  # whose seconds: gpu, cpu (of one thread), wall
    threads: int
    device: str
    precision: str
    steps: int
    stages: tuple[StageCost, ...]
    wall_s: float
    peaks: Peaks
    works: tuple[StepWork, ...]  # of each measured step
    computed: ComputedWork  # in the first batch
    first_work: StepWork  # of that batch
    peak_memory_bytes: int

    @property
    def seconds(self) -> float:
        return sum(stage.seconds for stage in self.stages)

    @property
    def useful_flops(self) -> float:
        return self.mean(lambda work: work.total.flops)

    @property
    def utilisation(self) -> float:
        """Useful FLOPs over what the measured product would do in the same time (MFU)."""
        return self.useful_flops / self.seconds / self.peaks.flops_per_s

    def mean(self, figure: Callable[[StepWork], float]) -> float:
        """The mean of a figure over the measured steps."""
        return sum(map(figure, self.works)) / len(self.works)


class MeasuredBatches:
    """The batches of a run, as many as are asked for; between two steps it does work that counts nowhere."""

    def __init__(self, batches: Batches, clock: StageClock, steps: int, between: Between) -> None:
        self.steps_per_epoch = WARM_UP + steps
        self._batches, self._clock, self._between = batches, clock, between
        self._moved: Batch | None = None

    def epoch(self, epoch: int, done: int = 0) -> Iterable[Batch]:  # noqa: ARG002  # there is one epoch
        """Batches of as many epochs as it takes."""
        batches = self._endless()
        for number in range(self.steps_per_epoch):
            if number == WARM_UP:
                self._clock.begin()
            with self._clock.stage(FETCH):
                batch = next(batches)
            yield batch
            with self._clock.paused():
                if self._moved is not None and number >= WARM_UP:
                    self._between(batch, self._moved)
                self._moved = None

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        with self._clock.stage(MOVE):
            self._moved = self._batches.to_device(batch, device)
        return self._moved

    def item_names(self, domain_U: Tensor, row_U: Tensor) -> list[str]:
        return self._batches.item_names(domain_U, row_U)

    def _endless(self) -> Iterator[Batch]:
        epoch = 1
        while True:
            yield from self._batches.epoch(epoch)
            epoch += 1


def measure(training: PreparedRun, steps: int, between: Between | None = None) -> StepCost:
    """Train for a few steps and measure all but the first ones. `between`: called after each measured step."""
    run, task = training.run, training.task
    device, precision = run.processes.device, training.recipe.machine.precision
    meter, works, clock = WorkMeter(task), list[StepWork](), StageClock(device)

    def after_step(batch: Batch, moved: Batch) -> None:
        works.append(meter.of(moved))
        if between is not None:
            between(batch, moved)

    source = MeasuredBatches(training.batches, clock, steps, after_step)
    loop = Loop(training.recipe.train, task, source, run.processes, run.log)
    settle_threads(run, loop, training.batches)
    _watch(loop, clock)
    run.log.say("bench: measuring a plain product and a plain copy")
    peaks = [measure_peaks(device, precision)]
    syncs = _SyncedStep(loop)
    run.log.say(f"bench: {WARM_UP} steps to warm up, {steps} to measure")
    memory = PeakMemory(device)
    loop.fit()
    seconds, wall_s = clock.end()
    grown = memory.growth()
    peaks.append(measure_peaks(device, precision))
    best = Peaks(*(max(getattr(one, name) for one in peaks) for name in Peaks.__dataclass_fields__))
    first = training.batches.to_device(next(iter(training.batches.epoch(1))), device)
    return StepCost(
        clock=clock.kind,
        threads=torch.get_num_threads(),
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        precision=precision,
        steps=steps,
        stages=_stages({name: total / steps for name, total in seconds.items()}, works, best),
        wall_s=wall_s / steps,
        peaks=best,
        works=tuple(works),
        computed=_computed(training, first, syncs.count),
        first_work=meter.of(first),
        peak_memory_bytes=grown,
    )


def _watch(loop: Loop, clock: StageClock) -> None:
    """Let the clock know when the stages of a loop begin and end; the loop itself knows nothing of it."""
    recommender = loop.task.recommender
    encoder = recommender.item_encoder
    if isinstance(encoder, Towers):
        for name, part in encoder.parts.items():
            clock.watch_module(part, PARTS[name])
    else:
        clock.watch_module(encoder, "items")
    clock.watch_module(recommender.user_encoder, "users")
    for term in loop.task.heads.values():
        clock.watch_module(term, OBJECTIVES)
    clock.watch_method(loop._strategy, "backward", BACKWARD)
    clock.watch_method(loop._strategy, "clip_gradients", OPTIMISER)
    clock.watch_method(loop._optimizer, "step", OPTIMISER)
    clock.watch_method(loop._optimizer, "zero_grad", OPTIMISER)
    clock.watch_method(loop, "_log_step", LOG)
    clock.watch_method(loop.log, "advance", LOG)


def _stages(seconds: Mapping[str, float], works: Sequence[StepWork], peaks: Peaks) -> tuple[StageCost, ...]:
    """The stages in the order of a step, with their floors."""
    num, total = len(works), Work.total(work.total for work in works)
    moved = sum(work.batch_bytes for work in works) / num
    update = sum(work.update_bytes for work in works) / num
    useful: dict[str, tuple[float, float]] = {FETCH: (0.0, moved), MOVE: (0.0, moved)}
    for name in works[0].stages:
        stage = Work.total(work.stages[name] for work in works)
        useful[name] = (stage.forward / num, stage.forward_bytes / num)
    useful |= {BACKWARD: (total.backward / num, total.backward_bytes / num), OPTIMISER: (0.0, update)}
    floors = {name: peaks.floor_s(*work) for name, work in useful.items()} | {MOVE: moved / peaks.upload_per_s}
    names = [*useful, *(name for name in seconds if name not in useful)]
    return tuple(
        StageCost(name, seconds.get(name, 0.0), *useful.get(name, (0.0, 0.0)), floors.get(name, 0.0)) for name in names
    )


def _computed(training: PreparedRun, batch: Batch, host_syncs: int) -> ComputedWork:
    """One more forward and backward, counted and not timed."""
    task, recommender = training.task, training.task.recommender
    text = recommender.item_encoder.parts.get("text_encoder")
    counts = [_RowCount(text), _RowCount(recommender.user_encoder)]
    with FlopCounterMode(display=False) as counter:
        for part in (batch, *batch.more):
            figures = task(part)
            torch.stack([figures[name][0] for name in task.weights]).sum().backward()  # type: ignore[no-untyped-call]  # untyped in torch
    task.zero_grad()
    tokens, positions = (count.close() for count in counts)
    return ComputedWork(float(counter.get_total_flops()), tokens, positions, host_syncs)


class _SyncedStep:
    """Counts the host syncs of the second step of a loop, which is one of those that warm up."""

    def __init__(self, loop: Loop) -> None:
        self.count = 0
        self._loop, self._step = loop, loop._train_step
        loop._train_step = self._counted  # type: ignore[method-assign]  # one object is watched, not the class

    def _counted(self, batch: Batch, moved: Batch) -> None:
        if self._loop.step != 1:
            self._step(batch, moved)
            return
        with HostSyncs() as syncs:
            self._step(batch, moved)
        self.count = syncs.count


class _RowCount:
    """Counts the rows that pass the blocks of a part, per block that is called."""

    def __init__(self, part: nn.Module | None) -> None:
        host = part.host if isinstance(part, Encoder | UserEncoder) else None
        self._rows: dict[nn.Module, float] = {}
        blocks = [] if host is None else [host.sub(name) for name in host.blocks]
        self._hooks = [block.register_forward_pre_hook(self._add) for block in blocks]

    def close(self) -> float:
        """The rows, 0 where no block is known."""
        for hook in self._hooks:
            hook.remove()
        return sum(self._rows.values()) / max(1, len(self._rows))

    def _add(self, block: nn.Module, arguments: tuple[Any, ...]) -> None:
        states = arguments[0]
        self._rows[block] = self._rows.get(block, 0.0) + states.numel() / states.shape[-1]
