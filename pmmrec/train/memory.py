"""Estimate how much memory a process will need."""
# Shapes: B users, S window positions, U distinct items.

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.contracts import TextSpec
from pmmrec.data.batches import DataConfig
from pmmrec.data.examples import Examples, Impression
from pmmrec.data.mixing import Draw, StepSampler, share
from pmmrec.data.prefix import DEVICE_SHARE
from pmmrec.data.randomness import Purpose, generator
from pmmrec.errors import RecipeError
from pmmrec.launch import LaunchFile, Spread
from pmmrec.requests import Shown, View
from pmmrec.train.config import TrainConfig
from pmmrec.train.division import gathers, shared_out
from pmmrec.train.memory_simulation import Kernels, StepMemory, StepSize, step_memory
from pmmrec.train.prepare import Sources
from pmmrec.train.processes import MachineConfig, Precision
from pmmrec.train.rowwise import choose_tables
from pmmrec.train.spread import blocks_of
from pmmrec.train.task import TrainingTask

FLOAT32 = 4  # bytes
STEPS_DRAWN = 4  # the fullest of so many is what is shown
USERS_DRAWN = 4096  # fewer steps where batches are larger
TEXTS_READ = 1000
# Of DeepSpeed, as its configuration stands where a launch file says nothing of it.
REDUCE_BUCKET = 500_000_000  # numbers of the buffer in which gradients travel
KEPT_WHOLE = 100_000  # ZeRO-3 has parameters of up to so many numbers whole as well
LIVE_AT_ONCE = 1_000_000_000  # ZeRO-3 gathers at most so many numbers
HALVES: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16}

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Launched:
    """A launch file, and the number of processes that it starts."""

    name: str  # as the user gave it
    file: LaunchFile
    num_processes: int

    @classmethod
    def read(cls, name: str | None, num_processes: int | None, *, is_plan: bool) -> Self | None:
        """The launch that a plan is for; None if none is named. RecipeError if a run, not a plan, names one."""
        if name is None and num_processes is None:
            return None
        if not is_plan:
            raise RecipeError("--launch: this program starts no processes; say `pmmrec pretrain --launch FILE`")
        if name is None:
            raise RecipeError("--processes: has no effect without --launch FILE; leave it out")
        file = LaunchFile.read(name)
        num_processes = num_processes or file.per_node * file.num_nodes
        if file.spread is Spread.ONE and num_processes > 1:
            raise RecipeError(f"{file.path}: is for one process, not {num_processes}; choose a file such as ddp")
        return cls(name, file, num_processes)

    def told(self) -> str:
        """The launch in a few words."""
        spread = self.file.spread.value
        return self.name if self.num_processes == 1 else f"{self.name}: {spread} over {self.num_processes} processes"


class Shares(NamedTuple):
    """Bytes of weights, gradients and optimizer states that a process holds, apart from those of a step."""

    weights: int
    gradients: int  # while there are any
    optimizer: int
    exchange: int  # buffers in which weights and gradients of all processes are exchanged

    @classmethod
    def of(cls, task: TrainingTask, spread: Spread, num_processes: int, rows_read: int = 0) -> Self:
        """The shares of the first process, which are the largest; all in float32, as weights are.

        Of a table that learns by rows (`choose_tables`), the gradient has `rows_read` rows at most.

        DDP holds a second copy of the gradients for the exchange. FSDP2 shards each tensor along its first dimension,
        and gathers the tensors outside blocks for a whole step, and two blocks at a time. DeepSpeed holds a second copy
        of the trainable tensors, sharded like the optimizer states, and a buffer of fixed size; ZeRO-3 keeps gathered
        tensors that are soon needed again.
        """
        whole, learning = list(task.parameters()), [p for p in task.parameters() if p.requires_grad]
        weights, gradients = _numbers(whole), _numbers(learning)
        optimizer, exchange = 2 * gradients + len(learning), 0  # two moments of each number, steps of each tensor
        by_rows = [one for one in task.modules() if isinstance(one, nn.Embedding) and one.sparse]
        gradients -= sum(max(0, table.num_embeddings - rows_read) * table.embedding_dim for table in by_rows)
        if spread is Spread.DDP:
            exchange = gradients
        elif spread is Spread.FSDP2:
            weights = sum(_first_share(tensor, num_processes) for tensor in whole)
            gradients = sum(_first_share(tensor, num_processes) for tensor in learning)
            optimizer, exchange = 2 * gradients + len(learning), _gathered(task)
        elif spread.is_deepspeed:
            own, exchange = math.ceil(gradients / num_processes), REDUCE_BUCKET
            gradients, optimizer = gradients if spread is Spread.ZERO1 else own, 3 * own + 1
        if spread is Spread.ZERO3:
            small = _numbers([tensor for tensor in whole if tensor.numel() <= KEPT_WHOLE])
            exchange += min(weights - small, LIVE_AT_ONCE)
            weights = math.ceil(weights / num_processes) + small  # the small ones as shares too
        constants = sum(buffer.nbytes for buffer in task.buffers())
        return cls(FLOAT32 * weights + constants, *(FLOAT32 * count for count in (gradients, optimizer, exchange)))


class Need(NamedTuple):
    """The memory of one process in one kind of step, in bytes."""

    shares: Shares
    step: StepMemory
    parts: int  # batches that a step is cut into
    fullest: int  # the most at any one time

    @classmethod
    def of(cls, shares: Shares, step: StepMemory, parts: int, spread: Spread, *, on_gpu: bool) -> Self:
        """Gradients are made while activations are freed, and the optimizer runs after that."""
        always = shares.weights + shares.optimizer + shares.exchange + parts * step.batch
        is_whole = spread in (Spread.ONE, Spread.DDP) and parts == 1
        moving = step.with_gradients if is_whole else step.activations + shares.gradients
        at_once = shares.optimizer // 2 if on_gpu else 0  # there AdamW updates all tensors at once
        return cls(shares, step, parts, always + max(moving, shares.gradients + at_once))

    def rows(self) -> dict[str, int]:
        """The bytes by name, in the order in which they are shown."""
        shares, step = self.shares, self.step
        return {
            "weights": shares.weights,
            "gradients": shares.gradients,
            "optimiser": shares.optimizer,
            "exchange": shares.exchange,
            "batch": self.parts * step.batch,
            "activations": step.activations,
            "at the fullest": self.fullest,
        }


@dataclass(frozen=True)
class Drawing:
    """What decides the batches of a run."""

    sources: Sources
    data: DataConfig
    examples: Sequence[Examples]
    sampler: StepSampler
    train: TrainConfig
    seed: int

    def as_drawn(self, task: TrainingTask, num_processes: int) -> StepSize:
        """The size of the largest of the first steps, by items, for the process with most users."""
        num_steps = max(1, min(STEPS_DRAWN, USERS_DRAWN // self.train.batch_users, self.sampler.steps_per_epoch))
        steps = [self._step(task, step, num_processes) for step in range(num_steps)]
        drawn = max(steps, key=lambda examples: len(np.unique(np.concatenate([*map(np.concatenate, examples)]))))
        windows, shown = zip(*drawn, strict=True)
        item_keys = np.unique(np.concatenate([*windows, *shown]))
        sees_all = gathers(self.train.gather, num_processes)
        num_blank = self.data.kind.num_blank
        longest = max(map(len, windows)) + num_blank
        slots = sum(len(keys) - 1 + num_blank for keys in windows)
        num_items = self._with_negatives(task, len(item_keys), slots, len(windows))
        texts = self._tokens_of_texts(task, item_keys)
        return StepSize(
            users=math.ceil(len(windows) / num_processes) if sees_all else len(windows),
            positions=longest,
            filled=slots / max(1, len(windows) * (longest - 1)),
            items=num_items,
            encoded=math.ceil(num_items / num_processes) if sees_all else num_items,
            tokens=math.ceil(sum(texts) / max(1, len(texts))),
            candidates=max(map(len, shown)),
            texts=texts,
            windows=tuple(len(keys) + num_blank for keys in windows),
        )

    def at_most(self, task: TrainingTask, num_processes: int) -> StepSize:
        """The size of a step of full windows whose items are all different and have the longest texts."""
        sees_all = gathers(self.train.gather, num_processes)
        num_users = math.ceil(self.train.batch_users / self.train.accumulate.user_parts)
        own = math.ceil(num_users / num_processes)
        num_positions = self.data.kind.longest + self.data.kind.num_blank
        shown = max(one.most_candidates for one in self.examples) if _shown(task) else 0
        num_windows = num_users if sees_all else own
        seen = num_windows * num_positions
        num_items = self._with_negatives(task, seen + num_windows * shown, seen, num_windows)
        return StepSize(
            users=own,
            positions=num_positions,
            filled=1.0,
            items=num_items,
            encoded=math.ceil(num_items / num_processes) if sees_all else num_items,
            tokens=max((spec.tokenizer.max_tokens for spec in _texts(task).values()), default=0),
            candidates=shown,
        )

    @property
    def _num_items(self) -> int:
        return sum(domain.num_items for domain in self.sources.domains)

    def _with_negatives(self, task: TrainingTask, num_items: int, num_targets: int, num_windows: int) -> int:
        """Distinct items of a step, drawn negatives included, if all of these are different."""
        if View.CATALOGUE in task.requests.views:
            return self._num_items
        requests = task.requests
        num_drawn = sum(
            one.count * (num_windows if (window, one) in requests.drawn_for_last else num_targets)
            for window, drawn in requests.passes.items()
            for one in drawn
        )
        return min(self._num_items, num_items + num_drawn)

    def _step(self, task: TrainingTask, step: int, num_processes: int) -> list[tuple[Ints, Ints]]:
        """Items and candidates of each example whose items the first process sees, in the first part of a step."""
        parts = self.train.accumulate.user_parts
        draw = Draw(*(np.array_split(column, parts)[0] for column in self.sampler.step(0, step)))
        if not gathers(self.train.gather, num_processes):
            draw = Draw(*(share(column, 0, num_processes) for column in draw))
        first_key = np.cumsum([0, *(domain.num_items for domain in self.sources.domains)])
        drawn = []
        for domain, window, visit in zip(*(column.tolist() for column in draw), strict=True):
            examples = self.examples[domain]
            rows = examples.items(window, generator(self.seed, Purpose.WINDOW, visit, domain, window))
            shown = _left(examples.impression(window), _shown(task))
            drawn.append((first_key[domain] + rows, first_key[domain] + shown))
        return drawn

    def _tokens_of_texts(self, task: TrainingTask, item_keys: Ints) -> tuple[int, ...]:
        """The tokens of the texts of at most a thousand of these items; one token where there is no text to read."""
        if not _texts(task):
            return ()
        chosen = item_keys[:: math.ceil(len(item_keys) / TEXTS_READ)]
        first_key, lengths = 0, list[int]()
        for domain in self.sources.domains:
            rows = chosen[(chosen >= first_key) & (chosen < first_key + domain.num_items)] - first_key
            for field, spec in _texts(task).items():
                texts = [text for text in domain.texts(rows, field) if text is not None]
                lengths += map(len, spec.tokenizer.encode(texts))
            first_key += domain.num_items
        return tuple(lengths) or (1,)


def _shown(task: TrainingTask) -> list[Shown]:
    """What objectives ask of candidates."""
    return [request for request in task.requests.passes if isinstance(request, Shown)]


def _left(impression: Impression | None, asked: Sequence[Shown]) -> Ints:
    """So many candidates as objectives read; which of those that were not clicked is all the same."""
    if impression is None or not asked:
        return np.empty(0, dtype=np.int64)
    counts = [request.num_not_clicked for request in asked]
    most = None if None in counts else max(count for count in counts if count is not None)
    clicked, others = impression.item_C[impression.is_clicked_C], impression.item_C[~impression.is_clicked_C]
    return np.concatenate([clicked, others[:most]]).astype(np.int64)


def _texts(task: TrainingTask) -> dict[str, TextSpec]:
    """The texts that the model reads."""
    reads = task.recommender.item_encoder.reads
    return {field: spec for field, spec in reads.items() if isinstance(spec, TextSpec)}


def memory_lines(
    task: TrainingTask,
    drawing: Drawing,
    launched: Launched,
    machine: MachineConfig,
    prefixes: Collection[str] = (),
) -> list[str]:
    """Lines that say how much memory each process of a run needs.

    `task` is on the meta device, and otherwise as it is when training begins. `prefixes`: fields with cached states.
    """
    spread, number, train = launched.file.spread, launched.num_processes, drawing.train
    on_cpu = launched.file.on_cpu or machine.device == "cpu"
    kernels = Kernels(not on_cpu, HALVES.get(machine.precision))
    choose_tables(task, train.optimizer.tables, spread)
    learning = _numbers([tensor for tensor in task.parameters() if tensor.requires_grad])
    num_copies = (train.average is not None) + (train.toward_start is not None)
    sizes, needs = (drawing.as_drawn(task, number), drawing.at_most(task, number)), []
    for size in sizes:
        shares = Shares.of(task, spread, number, rows_read=size.items)
        shares = shares._replace(weights=shares.weights + FLOAT32 * learning * num_copies)
        step, parts = step_memory(task, size, kernels, prefixes), train.accumulate.user_parts
        needs.append(Need.of(shares, step, parts, spread, on_gpu=not on_cpu))
    first, last = (need.rows() for need in needs)
    drawn, most = sizes
    place = "on the CPU" if on_cpu else "on a GPU"
    lines = [
        f"memory of each process ({launched.told()}, {machine.precision}, {place}):",
        shared_out(train.batch_users, number, train.gather, drawing.data.kind.unit),
        f"{'':<16}{'as drawn':>16}{'at most':>16}",
        *(f"{name:<16}{_megabytes(first[name]):>16}{_megabytes(last[name]):>16}" for name in first),
        f"as drawn: {_words(drawn)}; at most: {_words(most)}",
        "at the fullest is less than the sum where gradients come as activations go",
    ]
    if not on_cpu:
        kept = f"; kept states take up to {DEVICE_SHARE:.0%} of what is left" if prefixes else ""
        lines.append(f"beside it on the device: what CUDA and its libraries take, about 0.5 to 1 GB{kept}")
    return lines


def _words(size: StepSize) -> str:
    text = f", of {size.tokens} tokens a text" if size.tokens else ""
    return f"{size.items:,} items as negatives, {size.encoded:,} encoded by a process{text}"


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _numbers(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() for tensor in tensors)


def _gathered(task: TrainingTask) -> int:
    """Numbers that FSDP2 gathers at a time: tensors outside blocks, two blocks, and the gradients of these."""
    blocks = blocks_of(task.recommender)
    sizes = sorted((_with_gradients(block) for block in blocks), reverse=True)
    return _with_gradients(task) - sum(sizes) + sum(sizes[:2])


def _with_gradients(module: nn.Module) -> int:
    tensors = list(module.parameters())
    return _numbers(tensors) + _numbers([tensor for tensor in tensors if tensor.requires_grad])


def _first_share(parameter: Tensor, num_processes: int) -> int:
    """Size of the first shard of a tensor that is sharded along its first dimension."""
    length = parameter.shape[0] if parameter.dim() else 1
    return math.ceil(length / num_processes) * (parameter.numel() // max(1, length))
