"""Leave out a step whose loss or gradient is not finite, and name what caused it."""
# Shapes: K losses, B users, L inputs of a window, U distinct items, D width.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate.utils import DistributedType
from pydantic import Field
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm

from pmmrec.contracts import Batch
from pmmrec.errors import DivergenceError
from pmmrec.launch import Spread
from pmmrec.settings import Config
from pmmrec.train.delayed_read import DelayedRead
from pmmrec.train.log import RunLog
from pmmrec.train.processes import Processes, joined
from pmmrec.train.spread import Strategy
from pmmrec.train.task import TrainingTask

ADVICE = "Lower train.optimizer.learning_rate, or train in fp32 or bf16"


class NonfiniteConfig(Config):
    """What comes of a step whose loss or gradient is not finite; it updates nothing, in no process."""

    skip: int = Field(
        0, ge=0, description="So many such steps of a run are left out, one more ends it; 0: the first one does."
    )


class BatchReader(Protocol):
    """What must be known of batches to name what is in them."""

    def to_device(self, batch: Batch, device: torch.device) -> Batch: ...
    def item_names(self, domain_U: Tensor, row_U: Tensor) -> list[str]: ...


@dataclass(frozen=True)
class _Step:
    """One whose verdict is still on the device."""

    number: int
    batch: Batch  # as it was read, on the CPU
    own_K: Tensor  # the sums of this process's losses


class Nonfinite:
    """Lets a step update nothing where a loss or the gradient is not finite, without waiting for the device.

    The verdict is made of sums over all processes, so it is the same in each, and AdamW's kernel obeys it where it is:
    weights, moments and counts of steps stay as they are. It is read when the next step is about to update, by when
    the device is busy with that step. Weights are till then those the step saw: what broke can be looked for. The
    schedule and the order of the data go on, as functions of the step.

    A scaler (fp16) and DeepSpeed decide themselves whether a step updates, by its gradient: a process whose loss is
    not finite makes its gradient NaN throughout. That a gradient overflows in fp16 is no matter for words there.
    """

    def __init__(
        self,
        config: NonfiniteConfig,
        task: TrainingTask,
        spread: Strategy,
        batches: BatchReader,
        processes: Processes,
        log: RunLog,
    ) -> None:
        self.skipped = 0  # steps that were left out so far
        self._config, self._task, self._spread, self._optimizer = config, task, spread, spread.optimizer
        self._batches, self._processes, self._log = batches, processes, log
        self._names = tuple(task.weights)
        accelerator = processes.accelerator
        self._is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        self._is_fp16 = accelerator.mixed_precision == "fp16"
        self._statistics = [b for m in task.modules() if isinstance(m, _BatchNorm) for b in m.buffers()]
        self._before: list[Tensor] = []  # the statistics as the step found them
        self._own_K: Tensor | None = None
        self._verdict = DelayedRead()
        self._step: _Step | None = None
        zero = self._optimizer.optimizer
        if self._is_deepspeed and hasattr(zero, "check_grad_overflow"):
            zero.check_grad_overflow = True  # which it does not do in fp32 of itself

    def begin(self) -> None:
        """Before the first forward of a step."""
        self._own_K, self._before = None, [buffer.clone() for buffer in self._statistics]

    def watched(self, loss: Tensor, figures: Mapping[str, Tensor]) -> Tensor:
        """The loss of this process, or of a part of its users, from which gradients are about to be taken."""
        own_K = torch.stack([figures[name].detach()[0] for name in self._names])
        self._own_K = own_K if self._own_K is None else self._own_K + own_K
        if not (self._is_fp16 or self._is_deepspeed):
            return loss
        return loss * torch.where(own_K.isfinite().all(), 1.0, math.nan)

    def update(self, step: int, batch: Batch, totals: Mapping[str, Tensor], norm: Tensor | float | None) -> Tensor:
        """Let the optimiser take a step unless something is not finite.

        `batch`: as it was read; `totals`: sums and counts over all processes; `norm`: of all gradients together.
        Returns a 0-dim bool on the device, whether the step was held back. Every process must call it. Raises as
        `settle`, of the step before.
        """
        self.settle()
        is_broken = torch.stack([~totals[name].isfinite().all() for name in self._names])
        is_broken = torch.cat((is_broken, self._is_gradient_broken(norm, is_broken.device)))
        is_held = is_broken.any()
        if self._is_fp16 or self._is_deepspeed:
            self._optimizer.step()
        else:
            self._optimizer.optimizer.found_inf = is_held.float()  # the name by which torch's own scaler tells it
            self._optimizer.step()
            del self._optimizer.optimizer.found_inf
        for buffer, before in zip(self._statistics, self._before, strict=True):
            buffer.copy_(torch.where(is_held, before, buffer))
        if self._own_K is not None:
            self._step = _Step(step, batch, self._own_K)
        self._verdict.exchange(is_broken)
        if self._is_deepspeed:  # it has waited for the device, and makes its next update during backward
            self.settle()
        return is_held

    def settle(self) -> None:
        """Read what the last step came to, unless that is known. Every process must call it.

        Raises DivergenceError where it was held back and no more steps may be left out.
        """
        is_broken, step, self._step = self._verdict.take(), self._step, None
        if is_broken is None or step is None or not is_broken.any():
            return
        losses = [name for name, broken in zip(self._names, is_broken.tolist(), strict=False) if broken]
        told = self._processes.gathered([self._account(step)])
        place = self._log.leave(f"nonfinite-{step.number:08d}.json", {"step": step.number, "processes": told})
        place = self._processes.from_main(place)
        may_skip = self.skipped < self._config.skip
        self.skipped += may_skip
        items, users = _broken(told, "items"), _broken(told, "users")
        self._log.event("nonfinite", step.number, losses=losses, items=items, users=users, skipped=self.skipped)
        words = f"step {step.number}: {_words(losses, told)}; no update was made"
        where = "" if place is None else f"; all that was in it is in {place}"
        if not may_skip:
            raise DivergenceError(f"{words}{where}. {self._advice()}")
        self._log.warn(f"{words}; it is left out, {self.skipped} of at most {self._config.skip}{where}")

    def _is_gradient_broken(self, norm: Tensor | float | None, device: torch.device) -> Tensor:
        """`(1,)` on the device."""
        if self._is_fp16 or self._is_deepspeed:
            is_told = self._is_deepspeed and not self._is_fp16 and self._optimizer.step_was_skipped
            return torch.full((1,), is_told, device=device)
        whole = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm, device=device)
        return ~whole.isfinite().reshape(1)

    def _account(self, step: _Step) -> dict[str, Any]:
        """What this process knows of a step that was held back."""
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
        """Items whose vectors, users whose states are not finite; all processes look, for they may share items out."""
        items, users = [], []
        moved = self._batches.to_device(batch, self._processes.device)
        self._task.eval()  # so that neither dropout nor batch statistics know of this extra pass
        with self._spread.in_reach(), self._spread.autocast():
            for part in (moved, *moved.more):
                views = self._task.views(part)
                own = self._task.recommender.item_encoder(part.items)  # the views may hold items of other processes
                items += self._item_names(part, ~own.fused_UD.isfinite().all(dim=1))
                is_broken_B = ~views.hidden_BLD.isfinite().flatten(1).all(dim=1)
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


def _words(losses: Sequence[str], told: Sequence[Mapping[str, Any]]) -> str:
    """What was not finite, and where that is first seen."""
    if not losses:
        return "a gradient is not finite, every loss is"
    items, users = _broken(told, "items"), _broken(told, "users")
    own = [str(one["process"]) for one in told if not all(map(math.isfinite, one["losses"].values()))]
    where = (
        f"vectors of items {joined(items)}"
        if items
        else f"states of users {joined(users)}"
        if users
        else f"losses of process {joined(own)} of {len(told)}"
    )
    return f"loss of {joined(losses)} is not finite; first seen in {where}"


def _broken(told: Sequence[Mapping[str, Any]], kind: str) -> list[str]:
    return [name for account in told for name in account[f"broken_{kind}"]]


def stop_if_weights_nonfinite(task: TrainingTask, processes: Processes, step: int) -> None:
    """DivergenceError when the last update made a weight NaN or infinite, which no loss has met yet.

    Every process must call it: each may hold a part of the weights.
    """
    names, weights = zip(*task.named_parameters(), strict=True)
    shares = [_share(weight, processes) for weight in weights]
    counts = processes.summed(torch.stack([(~share.isfinite().all()).float() for share in shares]))
    broken = [name for name, count in zip(names, counts.tolist(), strict=True) if count]
    if broken:
        raise DivergenceError(f"step {step}: its update left {joined(broken)} not finite. {ADVICE}")


def _share(weight: Any, processes: Processes) -> Tensor:
    """What this process holds of a weight. ZeRO-3 keeps it beside an empty one, at its end padded with anything."""
    if isinstance(weight, DTensor):
        return weight.to_local()
    if processes.spread is not Spread.ZERO3:
        whole: Tensor = weight
        return whole
    share: Tensor = weight.ds_tensor
    return share[: max(0, weight.ds_numel - processes.rank * share.numel())]
