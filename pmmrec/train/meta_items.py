"""Items on the meta device: shapes without numbers, from which costs are counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from pmmrec.contracts import (
    FieldInputs,
    ItemInputs,
    PixelInputs,
    PixelSpec,
    StoredInputs,
    TextSpec,
    TokenInputs,
    ValueInputs,
    ValueSpec,
)
from pmmrec.encoders.prefix import CanBeCut
from pmmrec.modality import VectorSpec
from pmmrec.models.recommender import Recommender
from pmmrec.packing import HostArray, Packing, lengths_like


def item_inputs(
    recommender: Recommender,
    num_items: int,
    num_tokens: Sequence[int] = (),
    prefixes: frozenset[str] = frozenset(),
) -> ItemInputs:
    """Items on the meta device that have all that the model reads.

    `num_tokens`: of some texts, which stand for all; (): the longest texts.
    """
    encoder = recommender.item_encoder
    index_U, places = torch.zeros(num_items, dtype=torch.int64, device="meta"), HostArray(np.arange(num_items))
    inputs: dict[str, FieldInputs] = {}
    for field, spec in encoder.reads.items():
        if isinstance(spec, TextSpec):
            packing = Packing(lengths_like(num_tokens or (spec.tokenizer.max_tokens,), num_items))
            token_id_K = torch.zeros(packing.num_places, dtype=torch.int64, device="meta")
            inputs[field] = TokenInputs(token_id_K, packing, places)
        elif isinstance(spec, PixelSpec):
            pixels = torch.zeros((num_items, 3, spec.size, spec.size), dtype=torch.uint8, device="meta")
            inputs[field] = PixelInputs(pixels, places)
        elif isinstance(spec, ValueSpec):
            inputs[field] = ValueInputs(torch.zeros_like(index_U), places)
        elif isinstance(spec, VectorSpec):
            inputs[field] = StoredInputs(torch.zeros((num_items, *spec.shape), device="meta"), places)
    fields = {
        field: _at_cut(encoder.encoders[field], rows) if field in prefixes else rows for field, rows in inputs.items()
    }
    has_U = {field: torch.ones(num_items, dtype=torch.bool, device="meta") for field in encoder.reads}
    return ItemInputs(index_U, index_U.clone(), has_U, fields, index_U.new_zeros(()))


def _at_cut(encoder: nn.Module, rows: FieldInputs) -> FieldInputs:
    """The states that stand in for rows where the frozen part of their encoder is kept."""
    if not isinstance(encoder, CanBeCut) or not isinstance(rows, TokenInputs | PixelInputs):
        return rows
    with torch.no_grad():
        state = encoder.up_to_cut(rows)
    return encoder.at_cut(rows, state.float())
