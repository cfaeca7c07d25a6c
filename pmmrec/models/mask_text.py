"""A text that is encoded as one more item of a batch, and stands for hidden items (BERT4Rec over texts)."""
# Shapes: U distinct items, R rows given to one encoder, K tokens of all rows, H width of the backbone.

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.contracts import FieldInputs, ItemInputs, PrefixInputs, TokenInputs, to_device
from pmmrec.encoders import TextEncoder
from pmmrec.packing import HostArray, Packing


def mask_alone(encoder: TextEncoder, field: str, text: str) -> ItemInputs:
    """The text as the only item, on the device of the encoder."""
    rows = TokenInputs.of(encoder.tokenizer.encode([text]))
    index_U, has_U = torch.zeros(1, dtype=torch.int64), {field: torch.ones(1, dtype=torch.bool)}
    return to_device(ItemInputs(index_U, index_U, has_U, {field: rows}), next(encoder.parameters()).device)


def with_mask(items: ItemInputs, mask: ItemInputs) -> ItemInputs:
    """U + 1 items, of which that of `mask` is the last. Both read one text, as tokens or as the same kept states."""
    ((field, rows),), (more,) = items.fields.items(), mask.fields.values()
    return replace(
        items,
        domain_U=F.pad(items.domain_U, (0, 1)),
        row_U=F.pad(items.row_U, (0, 1)),
        has_U={field: F.pad(items.has_U[field], (0, 1), value=True)},
        fields={field: _with_row(rows, more, items.num_items)},
    )


def _with_row(rows: FieldInputs, more: FieldInputs, num_items: int) -> FieldInputs:
    """Texts with one more, that of item `num_items`; longer ones first, and a row that stands in comes behind it."""
    index_R = np.where(rows.item_index_R.values == num_items, num_items + 1, rows.item_index_R.values)
    if isinstance(rows, TokenInputs) and isinstance(more, TokenInputs):
        packing, row, place = _room(rows.packing, more.packing)
        token_id_K = _inserted(rows.token_id_K, more.token_id_K, place)
        return TokenInputs(token_id_K, packing, HostArray(np.insert(index_R, row, num_items)))
    if isinstance(rows, PrefixInputs) and isinstance(more, PrefixInputs) and rows.packing and more.packing:
        packing, row, place = _room(rows.packing, more.packing)
        state_KH = _inserted(rows.state, more.state.to(rows.state), place)
        return PrefixInputs(state_KH, packing, HostArray(np.insert(index_R, row, num_items)))
    if isinstance(rows, PrefixInputs) and isinstance(more, PrefixInputs):  # pooled texts, in any order
        state_RH = torch.cat((rows.state, more.state.to(rows.state)))
        return PrefixInputs(state_RH, None, HostArray(np.append(index_R, num_items)))
    raise TypeError(f"texts are given as {type(rows).__name__}, and that of the mask as {type(more).__name__}")


def _room(packing: Packing, more: Packing) -> tuple[Packing, int, int]:
    """The packing with one more row, the place of that row among the rows, and of its tokens among the tokens."""
    row = int((packing.length_R >= more.longest).sum())
    return Packing(np.insert(packing.length_R, row, more.longest)), row, int(packing.length_R[:row].sum())


def _inserted(x_K: Tensor, more_K: Tensor, place: int) -> Tensor:
    return torch.cat((x_K[:place], more_K, x_K[place:]))
