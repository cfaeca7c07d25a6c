"""Read lengths and places of the rows that encoders are given."""
# Shapes: R rows given to one encoder, U distinct items, T padded tokens, K tokens of all rows.

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pmmrec.bench.flops import Ints
from pmmrec.contracts import FieldInputs, PrefixInputs, TokenInputs
from pmmrec.modality import Tokenizer


def text_lengths(rows: FieldInputs) -> Ints | None:
    """Tokens of each text, or of each text whose states are kept; None for what is no text."""
    packing = rows.packing if isinstance(rows, TokenInputs | PrefixInputs) else None
    return None if packing is None else packing.length_R


def item_places(rows: FieldInputs) -> Ints:
    """The place of each row among the items; their number for a row that stands in."""
    places: Ints = rows.item_index_R.values
    return places


def padded_texts(rows: FieldInputs, num_items: int, tokenizer: Tokenizer) -> tuple[Tensor, Tensor]:
    """Token ids of U items padded to the longest text there may be, `(U, T)`, and which of them are valid.

    An item without a text has one token, whose state nobody reads.
    """
    assert isinstance(rows, TokenInputs)  # noqa: S101  of a reader that keeps no states
    id_UT = torch.full((num_items + 1, tokenizer.max_tokens), tokenizer.pad_token_id, dtype=torch.int64)
    is_valid_UT = torch.zeros_like(id_UT, dtype=torch.bool)
    is_valid_UT[:, 0] = True
    item_K = torch.from_numpy(item_places(rows)[rows.packing.row_K])
    place_K = torch.from_numpy(rows.packing.place_K.values)
    id_UT[item_K, place_K], is_valid_UT[item_K, place_K] = rows.token_id_K, True
    return id_UT[:num_items], is_valid_UT[:num_items]


def row_lengths(is_valid_RT: Tensor) -> Ints:
    """How many places of each row are valid."""
    lengths: Ints = is_valid_RT.sum(dim=1).cpu().numpy().astype(np.int64)
    return lengths
