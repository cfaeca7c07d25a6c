"""The useful work of a batch: distinct items, valid tokens, valid positions, and gradients of what is trained alone."""
# Shapes: B users, L positions, R rows given to one encoder, U distinct items, D width.

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pmmrec.bench.counted import MetaCounter
from pmmrec.bench.encoder_work import PRE_NORM, known_work, num_patches
from pmmrec.bench.flops import Ints, Work, learns, stack_work, stage_bytes, update_bytes
from pmmrec.bench.objective_work import objective_works
from pmmrec.bench.rows import item_places, row_lengths, text_lengths
from pmmrec.contracts import Batch, FieldInputs, ItemInputs, Modality, PrefixInputs
from pmmrec.encoders import Encoder
from pmmrec.encoders.prefix import CanBeCut
from pmmrec.encoders.vision_hf import HFVision
from pmmrec.fusion.attentive import MergeAttention
from pmmrec.models.towers import Towers
from pmmrec.requests import WindowRequest
from pmmrec.train.task import TrainingTask
from pmmrec.users.transformer import TransformerUserEncoder

OWN_ENTRIES = r"attention\.qkv"  # of our own blocks, which are post-norm
STAGES = ("text", "vision", "fusion", "items", "users", "objectives")
FLOAT = 4.0  # bytes


@dataclass(frozen=True)
class StepWork:
    """What one batch asks for."""

    stages: Mapping[str, Work]  # by name, those of `STAGES` that the task has
    update_bytes: float
    batch_bytes: float
    tokens: int  # valid ones of all texts
    positions: int  # valid ones of all passes over windows
    items: int
    users: int
    unknown: tuple[str, ...]  # objectives without a formula; their products are left out

    @property
    def total(self) -> Work:
        return Work.total(self.stages.values())


class WorkMeter:
    """Computes the useful work of batches for one task; what torch has to count is counted once."""

    def __init__(self, task: TrainingTask) -> None:
        self._task = task
        self._counter = MetaCounter(task.recommender, task.width)

    def of(self, batch: Batch) -> StepWork:
        """The work of a batch, all its parts included, with kept states fetched."""
        parts = [self._of_part(part) for part in (batch, *batch.more)]
        names = dict.fromkeys(name for part in parts for name in part.stages)
        return StepWork(
            stages={name: Work.total(part.stages[name] for part in parts) for name in names},
            update_bytes=update_bytes(self._task),
            batch_bytes=sum(part.batch_bytes for part in parts),
            tokens=sum(part.tokens for part in parts),
            positions=sum(part.positions for part in parts),
            items=sum(part.items for part in parts),
            users=sum(part.users for part in parts),
            unknown=parts[0].unknown,
        )

    def _of_part(self, batch: Batch) -> StepWork:
        length_R = position_lengths(batch, batch.windows.passes)
        objectives, unknown = objective_works(self._task, batch)
        stages = {
            **self.items(batch.items),
            "users": self._users(batch),
            "objectives": Work.total(objectives.values()),
        }
        return StepWork(
            stages={name: stages[name] for name in STAGES if name in stages},
            update_bytes=0.0,
            batch_bytes=float(sum(tensor.nbytes for tensor in tensors_of(batch))),
            tokens=sum(_num_tokens(rows) for rows in batch.items.fields.values()),
            positions=int(length_R.sum()),
            items=batch.items.num_items,
            users=len(batch.windows.is_valid_BS),
            unknown=unknown,
        )

    def items(self, items: ItemInputs) -> dict[str, Work]:
        """The stages that make the vectors of items."""
        encoder, width = self._task.recommender.item_encoder, self._task.width
        if not isinstance(encoder, Towers) or not isinstance(encoder.fusion, MergeAttention | None) or not items.fields:
            work = self._counter.items(items) if items.fields else Work()
            return {"items": work + stage_bytes(encoder, 0.0, FLOAT * width * items.num_items)}
        works: dict[str, Work] = {}
        fusion = encoder.fusion
        # Tokens in the fusion: mm_cls, then those of each field.
        fused_U = np.full(items.num_items, int(fusion is None or fusion.mm_cls is not None), dtype=np.int64)
        with_cls = fusion is not None and fusion.with_cls
        for field, tower in encoder.encoders.items():
            rows = items.fields[field]
            length_R, num_left_out = self._lengths(tower, rows)
            name = "vision" if field == Modality.IMAGE else "text"
            read = float(sum(tensor.nbytes for tensor in tensors_of(rows)))
            given = float(length_R.sum() if tower.gives_tokens else len(length_R))
            passed = tower.above_cut if isinstance(rows, PrefixInputs) and isinstance(tower, CanBeCut) else tower
            moved = stage_bytes(passed, read, FLOAT * width * given)
            works[name] = works.get(name, Work()) + self._tower(field, tower, rows, length_R) + moved
            index_R = item_places(rows)
            is_of_item_R = index_R < items.num_items  # False: it stands in
            num_cls = min(num_left_out, int(with_cls))
            fused_U[index_R[is_of_item_R]] += (length_R - num_left_out + num_cls)[is_of_item_R]
        if fusion is not None:
            blocks = list(fusion.blocks)
            work = stack_work(
                blocks, OWN_ENTRIES, np.maximum(fused_U, 1), input_learns=learns(encoder), is_pre_norm=False
            )
            read, written = FLOAT * width * float(fused_U.sum()), FLOAT * width * items.num_items
            works["fusion"] = work + stage_bytes(fusion, read, written)
        return works

    def _lengths(self, tower: Encoder, rows: FieldInputs) -> tuple[Ints, int]:
        """Positions of each row in an encoder, and how many of them a fusion does not see."""
        if isinstance(rows, PrefixInputs) and isinstance(tower, CanBeCut) and tower.pools_at_cut:
            return np.ones(len(item_places(rows)), dtype=np.int64), 1
        if isinstance(tower, HFVision) and tower.host.architecture in PRE_NORM:
            length = num_patches(tower) + tower.num_prefix_tokens
            return np.full(len(item_places(rows)), length), tower.num_prefix_tokens
        text_length_R = text_lengths(rows)
        if text_length_R is not None:
            return text_length_R, 1
        return np.full(len(item_places(rows)), self._counter.image_tokens), 0

    def _tower(self, field: str, tower: Encoder, rows: FieldInputs, length_R: Ints) -> Work:
        is_kept = isinstance(rows, PrefixInputs)
        work = known_work(tower, length_R, is_kept=is_kept)
        if work is not None:
            return work
        lengths, counts = np.unique(length_R, return_counts=True)
        pairs = zip(lengths.tolist(), counts.tolist(), strict=True)
        return Work.total(self._counter.row(field, length, is_kept=is_kept) * count for length, count in pairs)

    def _users(self, batch: Batch) -> Work:
        encoder, size = self._task.recommender.user_encoder, FLOAT * self._task.width
        alone = [request for request in batch.windows.passes if request in self._task.last_alone]
        rest = [request for request in batch.windows.passes if request not in alone]
        alone_R, rest_R = (position_lengths(batch, requests) for requests in (alone, rest))
        work = self._states(alone_R, last_alone=True) + self._states(rest_R, last_alone=False)
        num_read, num_given = float(alone_R.sum() + rest_R.sum()), float(len(alone_R) + rest_R.sum())
        return work + stage_bytes(encoder, size * num_read, size * num_given)

    def _states(self, length_R: Ints, *, last_alone: bool) -> Work:
        """The states at all positions of histories of these lengths, or the last of each alone."""
        encoder = self._task.recommender.user_encoder
        if isinstance(encoder, TransformerUserEncoder):
            rules = {"input_learns": self._input_learns(encoder), "is_pre_norm": False, "last_alone": last_alone}
            return stack_work(list(encoder.blocks), OWN_ENTRIES, length_R, **rules)
        length = int(length_R.max(initial=1))
        return self._counter.history(length, last_alone=last_alone) * (float(length_R.sum()) / length)

    def _input_learns(self, encoder: TransformerUserEncoder) -> bool:
        return learns(self._task.recommender.item_encoder) or encoder.position.weight.requires_grad


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors of a contract."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [tensor for entry in value.values() for tensor in tensors_of(entry)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [tensor for field in dataclasses.fields(value) for tensor in tensors_of(getattr(value, field.name))]
    return []


def position_lengths(batch: Batch, requests: Iterable[WindowRequest]) -> Ints:
    """Valid positions of every history in some passes over the windows."""
    masks = [batch.windows.passes[request].is_valid_BL for request in requests]
    return np.concatenate([row_lengths(is_valid_BL) for is_valid_BL in masks] or [np.zeros(0, np.int64)])


def _num_tokens(rows: FieldInputs) -> int:
    length_R = text_lengths(rows)
    return 0 if length_R is None else int(length_R.sum())
