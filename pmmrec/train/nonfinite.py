"""Leave out a step whose loss or gradient is not finite, and name what caused it."""
# Shapes: K losses, B users, L inputs of a window, U distinct items, D width.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from pmmrec.contracts import Batch
from pmmrec.errors import DivergenceError
from pmmrec.launch import Spread
from pmmrec.settings import Config
from pmmrec.train.delayed_read import DelayedRead
from pmmrec.train.log import RunLog
from pmmrec.train.processes import Processes, joined
from pmmrec.train.shards import own, whole
from pmmrec.train.strategy import Strategy
from pmmrec.train.task import TrainingTask

ADVICE = "Lower train.optimizer.learning_rate, or train in fp32 or bf16"


class NonfiniteConfig(Config):
    """What to do about a step whose loss or gradient is not finite. Such a step never updates anything."""

    skip: int = Field(
        0, ge=0, description="How many such steps a run may leave out; one more ends it. 0: the first one ends it."
    )


class BatchReader(Protocol):
    """A source of batches that can name their items."""

    def to_device(self, batch: Batch, device: torch.device) -> Batch: ...
    def item_names(self, domain_U: Tensor, row_U: Tensor) -> list[str]: ...


@dataclass(frozen=True)
class _Step:
    """A step whose flags are still on the device."""

    number: int
    batch: Batch  # as it was read, on the CPU
    own_K: Tensor  # the sums of this process's losses


class NonfiniteGuard:
    """Keeps the optimizer from updating anything where a loss or a gradient is not finite, without a device sync.

    The flag is computed from sums over all processes, so it is the same in each, and AdamW's kernel reads it on the
    device (`found_inf`): weights, moments and step counts stay as they are. The host reads it before the next update,
    while the device is busy with the next step; until then the weights are those of the broken step, so its cause can
    be found. The schedule and the order of the data go on, as functions of the step.

    The scaler of fp16 and DeepSpeed decide themselves from the gradient whether a step updates, so a process with a
    loss that is not finite makes its whole gradient NaN. A gradient that overflows in fp16 is normal and not reported.
    """

    def __init__(
        self,
        config: NonfiniteConfig,
        task: TrainingTask,
        strategy: Strategy,
        batches: BatchReader,
        processes: Processes,
        log: RunLog,
    ) -> None:
        self.skipped = 0  # steps that were left out so far
        self._config, self._task, self._strategy, self._optimizer = config, task, strategy, strategy.optimizer
        self._batches, self._processes, self._log = batches, processes, log
        self._names = tuple(task.weights)
        self._is_deepspeed = processes.spread.is_deepspeed
        self._optimizer_checks = self._is_deepspeed or processes.accelerator.mixed_precision == "fp16"
        self._statistics = [b for m in task.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
        self._statistics_before: list[Tensor] = []  # copies from before the step
        self._own_K: Tensor | None = None
        self._is_broken = torch.zeros(len(self._names) + 1, dtype=torch.bool)  # each loss, then the gradient
        self._flags = DelayedRead()
        self._step: _Step | None = None

    def begin_step(self) -> None:
        """Call before the first forward of a step."""
        self._own_K, self._statistics_before = None, [buffer.clone() for buffer in self._statistics]

    def check_loss(self, loss: Tensor, figures: Mapping[str, Tensor]) -> Tensor:
        """Note the loss of this process, or of a part of its users; returns the loss to call backward on.

        That is NaN if a loss is not finite and the optimizer checks only gradients.
        """
        own_K = torch.stack([figures[name].detach()[0] for name in self._names])
        self._own_K = own_K if self._own_K is None else self._own_K + own_K
        if not self._optimizer_checks:
            return loss
        return loss * torch.where(own_K.isfinite().all(), 1.0, math.nan)

    def before_update(self, totals: Mapping[str, Tensor], norm: Tensor | float | None) -> None:
        """Call before `optimizer.step()`, which then updates nothing if something is not finite.

        `totals`: sums and counts over all processes; `norm`: of all gradients together. Every process must call it.
        Raises as `settle`, for the step before.
        """
        self.settle()
        is_broken = torch.stack([~totals[name].isfinite().all() for name in self._names])
        self._is_broken = torch.cat((is_broken, self._is_gradient_broken(norm, is_broken.device)))
        if not self._optimizer_checks:
            self._optimizer.optimizer.found_inf = self._is_broken.any().float()  # as torch's own scaler passes it

    def after_update(self, step: int, batch: Batch) -> Tensor:
        """Call after `optimizer.step()`; returns a 0-dim bool on the device, whether the update was held back.

        `batch`: as it was read, on the CPU. Every process must call it.
        """
        if not self._optimizer_checks:
            del self._optimizer.optimizer.found_inf
        elif self._is_deepspeed:
            self._is_broken[-1] = self._optimizer.step_was_skipped
        is_held = self._is_broken.any()
        for buffer, before in zip(self._statistics, self._statistics_before, strict=True):
            buffer.copy_(torch.where(is_held, before, buffer))
        if self._own_K is not None:
            self._step = _Step(step, batch, self._own_K)
        self._flags.exchange(self._is_broken)
        if self._is_deepspeed:  # which has waited for the device already
            self.settle()
        return is_held

    def settle(self) -> None:
        """Read whether the last step was held back, unless that is known already. Every process must call it.

        Raises DivergenceError if it was and no more steps may be left out.
        """
        is_broken, step, self._step = self._flags.take(), self._step, None
        if is_broken is None or step is None or not any(is_broken.tolist()):
            return
        losses = [name for name, broken in zip(self._names, is_broken.tolist(), strict=False) if broken]
        accounts = self._processes.gathered([self._account(step)])
        place = self._log.leave(f"nonfinite-{step.number:08d}.json", {"step": step.number, "processes": accounts})
        place = self._processes.from_main(place)
        may_skip = self.skipped < self._config.skip
        self.skipped += may_skip
        items, users = _broken(accounts, "items"), _broken(accounts, "users")
        self._log.event("nonfinite", step.number, losses=losses, items=items, users=users, skipped=self.skipped)
        words = f"step {step.number}: {_words(losses, accounts)}; no update was made"
        where = "" if place is None else f"; all that was in it is in {place}"
        if not may_skip:
            raise DivergenceError(f"{words}{where}. {self._advice()}")
        self._log.warn(f"{words}; it is left out, {self.skipped} of at most {self._config.skip}{where}")

    def _is_gradient_broken(self, norm: Tensor | float | None, device: torch.device) -> Tensor:
        """`(1,)` on the device; False where the optimizer checks gradients itself."""
        if self._optimizer_checks:
            return torch.zeros(1, dtype=torch.bool, device=device)
        total = whole(norm) if isinstance(norm, Tensor) else torch.as_tensor(norm)
        return ~total.to(device).isfinite().reshape(1)

    def _account(self, step: _Step) -> dict[str, Any]:
        """What this process knows about a step that was held back."""
        parts = (step.batch, *step.batch.more)
        broken_items, broken_users = self._culprits(step.batch)
        return {
            "process": self._processes.rank,
            "losses": dict(zip(self._names, step.own_K.tolist(), strict=True)),
            "broken_items": broken_items,
            "broken_users": broken_users,
            "items": [name for part in parts for name in self._item_names(part)],
            "users": [name for part in parts for name in part.user_id],
        }

    @torch.no_grad()
    def _culprits(self, batch: Batch) -> tuple[list[str], list[str]]:
        """Items whose vectors and users whose states are not finite. All processes look: they may share the items."""
        items, users = [], []
        moved = self._batches.to_device(batch, self._processes.device)
        self._task.eval()  # this extra pass must change neither dropout nor batch statistics
        with self._strategy.gathered_parameters(), self._strategy.autocast():
            for part in (moved, *moved.more):
                views = self._task.views(part)
                own = self._task.recommender.item_encoder(part.items)  # the views may hold items of other processes
                items += self._item_names(part, ~own.fused_UD.isfinite().all(dim=1))
                is_sound_B = [states.hidden_BLD.isfinite().flatten(1).all(dim=1) for states in views.states.values()]
                if is_sound_B and part.user_id:
                    is_broken_B = ~torch.stack(is_sound_B).all(dim=0)
                    users += [part.user_id[place] for place in is_broken_B.nonzero()[:, 0].tolist()]
        self._task.train()
        return items, users

    def _item_names(self, batch: Batch, is_chosen_U: Tensor | None = None) -> list[str]:
        domain_U, row_U = batch.items.domain_U, batch.items.row_U
        if is_chosen_U is not None:
            domain_U, row_U = domain_U[is_chosen_U], row_U[is_chosen_U]
        return self._batches.item_names(domain_U, row_U)

    def _advice(self) -> str:
        skip = self._config.skip + 1
        return f"{ADVICE}, or look at what is named here; --resume train.on_nonfinite.skip={skip} leaves the step out"


def _words(losses: Sequence[str], accounts: Sequence[Mapping[str, Any]]) -> str:
    """Which losses were not finite, and where that was seen first."""
    if not losses:
        return "a gradient is not finite, every loss is"
    items, users = _broken(accounts, "items"), _broken(accounts, "users")
    own = [str(one["process"]) for one in accounts if not all(map(math.isfinite, one["losses"].values()))]
    where = (
        f"vectors of items {joined(items)}"
        if items
        else f"states of users {joined(users)}"
        if users
        else f"losses of process {joined(own)} of {len(accounts)}"
    )
    return f"loss of {joined(losses)} is not finite; first seen in {where}"


def _broken(accounts: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    return [name for account in accounts for name in account[f"broken_{kind}"]]


def stop_if_weights_nonfinite(task: TrainingTask, processes: Processes, step: int) -> None:
    """DivergenceError if the last update made a weight NaN or infinite, before any loss has shown it.

    Every process must call it: each may hold a shard of the weights.
    """
    names, weights = zip(*task.named_parameters(), strict=True)
    shards = [_shard_of(weight, processes) for weight in weights]
    counts = processes.summed(torch.stack([(~shard.isfinite().all()).float() for shard in shards]))
    broken = [name for name, count in zip(names, counts.tolist(), strict=True) if count]
    if broken:
        raise DivergenceError(f"step {step}: its update left {joined(broken)} not finite. {ADVICE}")


def _shard_of(weight: Any, processes: Processes) -> Tensor:
    """This process's shard of a weight. ZeRO-3 keeps it in `ds_tensor`, with arbitrary padding at the end."""
    if processes.spread is not Spread.ZERO3:
        return own(weight)
    shard: Tensor = weight.ds_tensor
    return shard[: max(0, weight.ds_numel - processes.rank * shard.numel())]
