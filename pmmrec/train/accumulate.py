"""Train steps whose batch is too large for the device, in parts one after another."""
# Shapes: U distinct items, R rows given to one encoder.

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint
from typing_extensions import Self

from pmmrec.contracts import ItemInputs, ItemVectors, PrefixSlots
from pmmrec.errors import RecipeError
from pmmrec.models import ItemEncoder
from pmmrec.packing import HostArray
from pmmrec.settings import Config


class AccumulateConfig(Config):
    """In how many parts a step passes."""

    mode: Literal["exact", "plain"] = Field(
        "exact",
        description="exact: the items of a step pass the encoders in parts, each once more on the way back; losses and "
        "gradients are those of the whole. plain: the users of a step pass in parts, each with its own negatives.",
    )
    parts: int = Field(1, ge=1, description="How many; 1: the whole at once.")

    @model_validator(mode="after")
    def _plain_has_parts(self) -> Self:
        if self.mode == "plain" and self.parts == 1:
            raise ValueError("mode: plain has no effect in one part; say parts: 2 or more, or leave accumulate out")
        return self

    @property
    def item_parts(self) -> int:
        """In how many parts the items of a batch pass."""
        return self.parts if self.mode == "exact" else 1

    @property
    def user_parts(self) -> int:
        """Into how many batches the users of a step are cut."""
        return self.parts if self.mode == "plain" else 1


def refuse_idle_parts(config: AccumulateConfig, num_items: int) -> None:
    """RecipeError where the items of a step pass in more parts than there are items to read in all domains."""
    if config.item_parts > num_items:
        raise RecipeError(
            f"train.accumulate.parts: {config.item_parts} parts of at most {num_items} items leave some without any; "
            f"take {num_items} or fewer"
        )


def refuse_batch_statistics(encoder: nn.Module, setting: str, instead: str = "leave this setting out") -> None:
    """RecipeError where a layer that learns looks at a batch as a whole: a part, or a second pass, misleads it."""
    for name, module in encoder.named_modules():
        if isinstance(module, _BatchNorm) and any(tensor.requires_grad for tensor in module.parameters()):
            raise RecipeError(
                f"{setting}: {name} keeps statistics of whole batches, each seen once; freeze its block, choose an "
                f"encoder without batch statistics, or {instead}"
            )


def checkpoint_activations(encoder: ItemEncoder) -> None:
    """Let the blocks of all encoders keep no activations. RecipeError where there is none that learns."""
    if not any(tensor.requires_grad for part in encoder.encoders.values() for tensor in part.parameters()):
        raise RecipeError(
            "train.checkpoint_activations: has no effect, no encoder with blocks learns here; leave it out"
        )
    refuse_batch_statistics(encoder, "train.checkpoint_activations")
    for part in dict.fromkeys(encoder.encoders.values()):  # one may read several fields
        part.checkpoint_activations()


def encode_in_parts(encoder: ItemEncoder, items: ItemInputs, num_parts: int) -> ItemVectors:
    """What `encoder(items)` gives, with the activations of one part in memory at a time.

    A part is computed once more, with the same random numbers, when gradients reach it (the exact accumulation of
    GradCache, arXiv 2101.06983, in one backward, so that DDP sees one pass). Every call has `num_parts` calls
    of the encoder, however few items there are.
    """

    def encode(_row_U: Tensor, part: ItemInputs) -> ItemVectors:
        vectors: ItemVectors = encoder(part)
        return vectors

    # A tensor goes along since checkpoint keeps the random state of those devices alone whose tensors it is given.
    parts = [checkpoint(encode, part.row_U, part, use_reentrant=False) for part in item_parts(items, num_parts)]
    return _joined(parts, items.num_items)  # stand-ins are last


def item_parts(items: ItemInputs, num_parts: int) -> list[ItemInputs]:
    """The items in spans as equal as can be; where they are too few, the first stands in behind them."""
    num_items = items.num_items
    num_spans = min(num_parts, num_items)
    spans = [(num_items * part // num_spans, num_items * (part + 1) // num_spans) for part in range(num_spans)]
    return [_span(items, *span) for span in (*spans, *[(0, 1)] * (num_parts - num_spans))]


def _span(items: ItemInputs, start: int, stop: int) -> ItemInputs:
    if any(isinstance(rows, PrefixSlots) for rows in items.fields.values()):
        raise TypeError("items: kept states are cut into parts once they have been fetched")
    return ItemInputs(
        domain_U=items.domain_U[start:stop],
        row_U=items.row_U[start:stop],
        has_U={field: has_U[start:stop] for field, has_U in items.has_U.items()},
        fields={field: _rows(rows, start, stop) for field, rows in items.fields.items()},
        draw=items.draw,
    )


def _rows(rows: Any, start: int, stop: int) -> Any:
    """The rows of a span of items, of the same kind; the first row stands in where none has the field."""
    index_R = rows.item_index_R.values
    chosen = np.flatnonzero((index_R >= start) & (index_R < stop))
    place = index_R[chosen] - start
    if not len(chosen):
        chosen, place = np.zeros(1, dtype=np.int64), np.array([stop - start])
    replaced: dict[str, Any] = {"item_index_R": HostArray(place)}
    packing, taken = getattr(rows, "packing", None), HostArray(chosen)
    if packing is not None:
        replaced["packing"], taken = packing.some(chosen)
    for field in dataclasses.fields(rows):
        value = getattr(rows, field.name)
        if isinstance(value, Tensor):
            replaced[field.name] = value.index_select(0, taken.on(value.device))
    return dataclasses.replace(rows, **replaced)


def _joined(parts: list[ItemVectors], num_items: int) -> ItemVectors:
    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat(tensors)[:num_items]

    first = parts[0]
    return ItemVectors(
        fused_UD=joined([part.fused_UD for part in parts]),
        cls_UD={field: joined([part.cls_UD[field] for part in parts]) for field in first.cls_UD},
        has_U={field: joined([part.has_U[field] for part in parts]) for field in first.has_U},
        streams_UD={name: joined([part.streams_UD[name] for part in parts]) for name in first.streams_UD},
        mask_D=first.mask_D,
    )
