"""The training loop. It gives the same updates however a batch is spread over processes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from pmmrec.contracts import Batch
from pmmrec.data.loader import LostWorkerError
from pmmrec.errors import MachineError, RecipeError
from pmmrec.evaluation.share import WorkerGroup
from pmmrec.startup import collecting_as_usual
from pmmrec.train.accumulate import checkpoint_activations, refuse_batch_statistics
from pmmrec.train.average import Average
from pmmrec.train.config import TrainConfig
from pmmrec.train.cost import TrainingCost, peak_memory_bytes, reset_peak
from pmmrec.train.delayed_read import DelayedRead
from pmmrec.train.failures import lost_worker, out_of_memory
from pmmrec.train.heartbeat import StepPhase
from pmmrec.train.log import RunLog
from pmmrec.train.meter import Forecast, Meter, added, shown_losses, sizes_of
from pmmrec.train.nonfinite import NonfiniteGuard, stop_if_weights_nonfinite
from pmmrec.train.optim import build_optimizer
from pmmrec.train.pace import Pace
from pmmrec.train.processes import Processes
from pmmrec.train.schedule import build_scheduler, change_num_steps
from pmmrec.train.snapshot import below
from pmmrec.train.spread import build_strategy, prepare_task, refuse_unfit
from pmmrec.train.stages import Stages
from pmmrec.train.state import State
from pmmrec.train.states import States
from pmmrec.train.task import TrainingTask
from pmmrec.train.toward_start import TowardStart


class BatchSource(Protocol):
    """Where batches come from: this process's share of each step."""

    @property
    def steps_per_epoch(self) -> int: ...

    def epoch(self, epoch: int, done: int = 0) -> Iterable[Batch]:
        """The batches of an epoch, the first of which is 1, without the first `done` steps of it."""
        ...

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """A copy on `device`, ready for the model."""
        ...

    def item_names(self, domain_U: Tensor, row_U: Tensor) -> list[str]:
        """`domain/item` of each, for messages."""
        ...


class Callback(Protocol):
    """Called before the first epoch (epoch 0) and after each; may set `loop.should_stop`."""

    def epoch_ended(self, loop: Loop, epoch: int) -> None: ...


_STOP_FLAGS = "stop_flags"  # summed over all processes, together with the figures of a step


class Loop:
    """Trains a task. After `fit`, the task holds the weights of the last step; callbacks keep better ones."""

    def __init__(
        self,
        config: TrainConfig,
        task: TrainingTask,
        batches: BatchSource,
        processes: Processes,
        log: RunLog,
        callbacks: Sequence[Callback] = (),
        states: States | None = None,
    ) -> None:
        """`states`: where it is kept how to go on after a stop; without them a run that is stopped is lost."""
        self.config, self.task, self.log, self.processes = config, task, log, processes
        self.step = 0
        self.epoch = 0  # the one it is in; 0 until the model has been validated once, before training
        self._is_trained = False  # whether only the validation of that epoch is left
        self.cost = TrainingCost.of(task)
        self.should_stop = False
        self.may_end_early = True  # before its last epoch, as far as is known; set by KeepBest
        self.validation: dict[int, Mapping[str, float]] = {}
        self.best: tuple[int, float] | None = None  # epoch and value, set by KeepBest
        self._batches, self._callbacks, self._states = batches, callbacks, states
        self._meter, self._began_s, self._epoch_s = Meter(), time.monotonic(), 0.0  # `_epoch_s`: before it was stopped
        self.group: WorkerGroup = processes if states is None else states.group  # for work that a stop may abandon
        self._flags = DelayedRead()
        self._last_flags: Tensor | None = None  # the stop flags of the step before
        self._uncounted = set(task.weights)  # objectives that have counted nothing so far
        self._num_steps = config.epochs * batches.steps_per_epoch
        self._forecast = Forecast(config.epochs, batches.steps_per_epoch)
        self._pace = Pace.of(log.folder, config, task, processes, batches.steps_per_epoch)
        refuse_unfit(processes.spread, processes.machine, config.accumulate)
        task.item_parts = config.accumulate.item_parts
        if task.item_parts > 1:
            refuse_batch_statistics(task.recommender.item_encoder, "train.accumulate")
        if config.checkpoint_activations:
            checkpoint_activations(task.recommender.item_encoder)
        prepare_task(processes, task, log)
        self._stages = Stages(config.stages, task, processes.spread)
        self._average = Average(config.average, task, processes.spread)
        optimizer = build_optimizer(task, config.optimizer, processes.spread)
        self._scheduler = build_scheduler(optimizer, config.optimizer, self._num_steps, batches.steps_per_epoch)
        self._toward_start = TowardStart(config.toward_start, task, optimizer, processes.spread)
        self._by_rows = optimizer.words()
        self._rate = 0.0  # of the latest step, in the first group
        self._strategy = build_strategy(processes, task, optimizer, self._scheduler, config.clip_norm)
        self._optimizer = self._strategy.optimizer
        self._guard = NonfiniteGuard(config.on_nonfinite, task, self._strategy, batches, processes, log)
        self._watchdog = processes.watchdog
        self._watchdog.set_limits(60 * config.step_minutes, 3600 * config.phase_hours)

    def fit(self) -> None:
        """Train until the epochs are over or a callback stops it. StoppedError where the run is asked to end."""
        is_resumed = self._states is not None and self._states.resume(self)
        if not is_resumed:
            sizes = {"trainable": self.cost.trainable_parameters, "total": self.cost.total_parameters}
            self.log.event("parameters", 0, **sizes)
        if (told := self._stages.never_begun(self.config.epochs)) is not None:
            self.log.warn(told)
        self.log.say(self.cost.words() + self._by_rows)
        try:
            with collecting_as_usual(), self.watched():
                self._fit()
        except LostWorkerError as error:
            raise MachineError(lost_worker(self.step + 1, error)) from error

    def watched(self) -> AbstractContextManager[None]:
        """Watch work of all processes: this one ends if another is silent for too long."""
        return self._watchdog.open()

    def _fit(self) -> None:
        if self.epoch == 0:
            self._end_epoch()
        while self.epoch <= self.config.epochs and not self.should_stop:
            if not self._is_trained:
                self._train_epoch()
            self._end_epoch()
        if self._states is not None:
            self._states.training_ended(self)

    def stoppable(self) -> AbstractContextManager[None]:
        """Run work between steps; stop before or during it if any process was asked to."""
        return nullcontext() if self._states is None else self._states.stoppable(self)

    def gathered_parameters(self) -> AbstractContextManager[None]:
        """Wrap calls to parts of the model, some of whose weights may have to be gathered for them."""
        return self._strategy.gathered_parameters()

    @property
    def training_s(self) -> float:
        """Seconds spent so far, without validation."""
        return self.cost.seconds

    def measure(self, batch: Batch) -> dict[str, Tensor]:
        """Sum and count of each objective on one batch, over all processes; no update. Every process must call it."""
        moved = self._batches.to_device(batch, self.processes.device)
        return added([self._totals(self._strategy.forward(part)) for part in (moved, *moved.more)])

    def state_dict(self) -> dict[str, Tensor]:
        """The whole state on the CPU; complete on the main process. Every process must call it."""
        return self._strategy.whole_state()

    def snapshot(self) -> State:
        """All that is needed to go on from here; tensors on the main process alone. Every process must call it."""
        self._guard.settle()
        state = self._strategy.trainer_state.capture()
        meter = {f"meter/{name}": total.to("cpu", copy=True) for name, total in self._meter.figures.items()}
        facts: dict[str, Any] = {
            "step": self.step,
            "epoch": self.epoch,
            "is_trained": self._is_trained,
            "epoch_s": time.monotonic() - self._began_s if self._steps_done and not self._is_trained else 0.0,
            "meter_s": time.monotonic() - self._meter.started_s,
            "cost": dataclasses.asdict(self.cost),
            "validation": {str(epoch): dict(metrics) for epoch, metrics in self.validation.items()},
            "best": self.best,
            "should_stop": self.should_stop,
            "num_steps": self._num_steps,
            "skipped": self._guard.skipped,
        }
        average = {f"average/{name}": one.to("cpu", copy=True) for name, one in self._average.tensors.items()}
        tensors = {**state.tensors, **meter, **average}
        return dataclasses.replace(state, facts={**state.facts, **facts}, tensors=tensors)

    def restore(self, state: State) -> None:
        """Be where `snapshot` was taken. Raises CheckpointError where the state is of another model.

        RecipeError where negatives are those of each process, and there were more or fewer of them, or where the run
        has passed the last of its epochs.
        """
        kept, ours = state.facts["world"], self.processes.world
        if self.config.gather is False and kept != ours:
            raise RecipeError(
                f"train.gather: false makes a user's negatives those of its process, and the run was begun on {kept}, "
                f"not {ours}: go on with {kept}, or begin another run"
            )
        self._strategy.trainer_state.restore(state)
        self._average.restore(below(state.tensors, "average"))
        facts, device = state.facts, self.processes.device
        self.step, self.epoch, self.should_stop = facts["step"], facts["epoch"], facts["should_stop"]
        self.validation = {int(epoch): metrics for epoch, metrics in facts["validation"].items()}
        self.best = None if facts["best"] is None else (facts["best"][0], facts["best"][1])
        self.cost = TrainingCost(**facts["cost"])
        self._is_trained = facts.get("is_trained", False)
        self._epoch_s, self._guard.skipped = facts["epoch_s"], facts["skipped"]
        figures = {name: total.to(device) for name, total in below(state.tensors, "meter").items()}
        self._meter = Meter(figures, time.monotonic() - facts["meter_s"])
        num_steps = facts.get("num_steps", self._num_steps)
        if num_steps != self._num_steps:
            self._change_epochs(num_steps)

    def _change_epochs(self, num_steps: int) -> None:
        """Go on with other epochs than those that had `num_steps`. RecipeError where the run has passed the last."""
        before, now = num_steps // self._batches.steps_per_epoch, self.config.epochs
        begun = self.epoch if self._steps_done else self.epoch - 1
        if now < begun:
            raise RecipeError(f"train.epochs: {now}, but the run is in epoch {begun} already; take {begun} or more")
        told = change_num_steps(self._scheduler, self.config.optimizer, num_steps, self._num_steps)
        if self.should_stop:
            told = "training had stopped early (validation.patience), and stays stopped"
        self.log.say(f"train.epochs: {before} -> {now}; {told}")

    @property
    def _steps_done(self) -> int:
        """Of the epoch it is in."""
        return self.step - max(0, self.epoch - 1) * self._batches.steps_per_epoch

    def _train_epoch(self) -> None:
        reset_peak(self.processes.device)
        self._began_s, self._epoch_s = time.monotonic() - self._epoch_s, 0.0
        self.task.train()
        if (told := self._stages.begin_epoch(self.epoch)) is not None:
            self.log.say(told)
        self.log.begin_progress(f"epoch {self.epoch}", self._batches.steps_per_epoch)
        self._forecast.begin_epoch(self.step)
        if not self._meter.figures:
            self._meter = Meter()  # validation is no part of its time
        done = self._steps_done
        self._watchdog.step(self.step + 1, StepPhase.READING)
        for number, batch in enumerate(self._batches.epoch(self.epoch, done), start=done + 1):
            self._watchdog.step(self.step + 1, StepPhase.COMPUTING)
            moved = self._batches.to_device(batch, self.processes.device)
            try:
                if self.step == 0:
                    self._log_gradient_norms(moved)
                self._train_step(batch, moved)
            except torch.OutOfMemoryError as error:
                told = out_of_memory(self.step + 1, moved, self.config.batch_users)
                raise MachineError(told) from error
            self.log.advance()
            if self.step == 1 or self.step % self.config.log_every == 0 or number == self._batches.steps_per_epoch:
                self._guard.settle()
                self._log_step(self._meter, batch.unit)
                self._meter = Meter()
            self._watchdog.between_steps()
            if self._states is not None:
                self._states.step_ended(self, self._last_flags)
            self._watchdog.step(self.step + 1, StepPhase.READING)
        self._watchdog.between_steps()
        self.log.end_progress()
        stop_if_weights_nonfinite(self.task, self.processes, self.step)
        for name in sorted(self._uncounted):
            self.log.warn(f"objectives.{name}: has counted nothing so far: no example has what it compares")
        with self._strategy.gathered_parameters():
            self.task.end_epoch()
        seconds = time.monotonic() - self._began_s
        self.cost.add_epoch(seconds, self.processes.device)
        self._pace.keep()
        peak = self.cost.peak_memory_bytes
        self.log.event("epoch", self.step, epoch=self.epoch, seconds=seconds, peak_memory_bytes=peak)
        self._is_trained = True

    def _train_step(self, batch: Batch, moved: Batch) -> None:
        """Make one update. `batch`: as it was read; `moved`: the same on the device, its users in one or more parts."""
        parts = (moved, *moved.more)
        counts = self._counts(parts) if moved.more else None  # what the losses of all parts are divided by
        done: list[dict[str, Tensor]] = []
        self._guard.begin_step()
        for part in parts:
            is_last = part is parts[-1]
            with self._strategy.gradient_sync(is_last=is_last):
                figures = self._strategy.forward(part)
                done.append(self._totals({**figures, **sizes_of(part), **(self._own_flags() if is_last else {})}))
                self._strategy.backward(self._loss(figures, counts or done[-1]))
                del figures  # and with them the graph, before the update
        totals = added(done)
        self._read_flags(totals)
        self._stages.drop_gradients()
        norm = self._strategy.clip_gradients()
        self._guard.before_update(totals, norm)
        self._optimizer.step()
        is_held = self._guard.after_update(self.step + 1, batch)
        self._toward_start.pull(is_held)
        self._rate = float(self._scheduler.get_last_lr()[0])
        self._scheduler.step()
        self._optimizer.zero_grad()
        self.step += 1
        self._average.update(self.step)
        self._meter.add(totals, is_held)

    def _counts(self, parts: Sequence[Batch]) -> dict[str, Tensor]:
        """What the losses of a step in parts are divided by, over all parts and processes."""
        with self._strategy.gathered_parameters():
            return self._totals(added([self.task.counts(part) for part in parts]))

    def _loss(self, figures: Mapping[str, Tensor], totals: Mapping[str, Tensor]) -> Tensor:
        """What this process adds to the step's loss, the sum over all users divided by the count of all."""
        terms = [
            weight * self.processes.world * figures[name][0] / totals[name][1].clamp(min=1)  # DDP averages gradients
            for name, weight in self.task.weights.items()
        ]
        return self._guard.check_loss(torch.stack(terms).sum(), figures)

    def _own_flags(self) -> dict[str, Tensor]:
        return {} if self._states is None else {_STOP_FLAGS: self._states.stop_flags(self.processes.device)}

    def _read_flags(self, totals: dict[str, Tensor]) -> None:
        """Take the stop flags of all processes out of the totals; those of the step before are read now."""
        if _STOP_FLAGS in totals:
            self._last_flags = self._flags.exchange(totals.pop(_STOP_FLAGS))

    def _totals(self, figures: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Sums and counts over all processes, in one exchange."""
        names = sorted(figures)
        stacked_K2 = torch.stack([figures[name].detach().float() for name in names])
        return dict(zip(names, self.processes.accelerator.reduce(stacked_K2, "sum"), strict=True))

    def _log_gradient_norms(self, batch: Batch) -> None:
        if not self._strategy.can_differentiate_twice:
            self.log.say(f"gradient at the item vectors: not measured under {self.processes.spread.value}")
            return
        self.task.eval()  # so that neither dropout nor batch statistics know of this extra pass
        with self._strategy.gathered_parameters(), self._strategy.autocast():
            norms = self.task.gradient_norms(batch)
        self.task.train()
        if not norms:
            return
        self.log.event("gradient_norm", 0, **norms)
        self.log.say("gradient at the item vectors: " + "  ".join(f"{name} {norm:.2g}" for name, norm in norms.items()))

    def _log_step(self, meter: Meter, unit: str) -> None:
        sizes = meter.sizes()
        if not sizes["users"]:
            return  # every step of it was left out
        means = meter.means()
        self._uncounted -= means.keys()
        total = sum(weight * means.get(name, 0.0) for name, weight in self.task.weights.items())
        seconds = time.monotonic() - meter.started_s
        users_per_s = sizes["users"] / seconds
        figures = {"loss": total, **means, "users_per_s": users_per_s, **sizes, "learning_rate": self._rate}
        self.log.event("train", self.step, **figures)
        shown = shown_losses(means, self.task.weights, with_chance=self.step == 1)
        device = self.processes.device
        memory = f"  {(peak_memory_bytes(device) or 0) / 1e9:.1f} GB" if device.type == "cuda" else ""
        width = len(str(self._num_steps))
        step = f"step {self.step:>{width}}/{self._num_steps}"
        left = self._forecast.words(self.step, is_at_most=self.may_end_early)
        self.log.say(f"{step}  loss {total:.3f} ({shown})  {users_per_s:.0f} {unit}/s{memory}{left}")
        if self.step > 1 and (hint := self._pace.hint(users_per_s)):
            self.log.warn(hint)

    def _end_epoch(self) -> None:
        try:
            with self.stoppable(), self._average.in_place():
                with self._strategy.gathered_parameters():
                    self.task.keep_mask()
                for callback in self._callbacks:
                    callback.epoch_ended(self, self.epoch)
        except MachineError as error:  # such as a disk that is full when better weights are kept
            if self._states is None:
                raise
            raise MachineError(f"{error}; --resume goes on from the last state") from error
        self.epoch, self._is_trained = self.epoch + 1, False
        if self._states is not None:
            self._flags.take()  # of the last step; `epoch_ended` exchanges new ones
            self._states.epoch_ended(self)
