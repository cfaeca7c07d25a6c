"""Blocks of user encoders by loops over places, over one history without padding."""
# Shapes: L places, D width.

from __future__ import annotations

import math

import torch
from torch import Tensor

from pmmrec.blocks import Attention, TransformerBlock


def transformer_block_by_loops(block: TransformerBlock, x_LD: Tensor, *, is_causal: bool) -> Tensor:
    """Post-norm: LN(x + attention), LN(that + feed-forward). Pre-norm: x + attention(LN x), that + feed-forward(LN)."""

    def fed_forward(row_LD: Tensor) -> Tensor:
        out: Tensor = block.contract(block.activation(block.expand(row_LD)))
        return out

    if block.norm_first:
        attended_LD = x_LD + attention_by_loops(block.attention, block.attention_norm(x_LD), is_causal=is_causal)
        return attended_LD + fed_forward(block.feed_forward_norm(attended_LD))
    attended_LD = block.attention_norm(x_LD + attention_by_loops(block.attention, x_LD, is_causal=is_causal))
    out: Tensor = block.feed_forward_norm(attended_LD + fed_forward(attended_LD))
    return out


def attention_by_loops(attention: Attention, x_LD: Tensor, *, is_causal: bool) -> Tensor:
    """One place, one head and one seen place after another."""
    size = x_LD.shape[1] // attention.num_heads
    query_LD, key_LD, value_LD = attention.qkv(x_LD).chunk(3, dim=1)
    rows = []
    for place in range(len(x_LD)):
        seen = range(place + 1) if is_causal else range(len(x_LD))
        heads = []
        for head in range(attention.num_heads):
            part = slice(head * size, (head + 1) * size)
            weights = [torch.dot(query_LD[place, part], key_LD[other, part]) / math.sqrt(size) for other in seen]
            shares = torch.stack(weights).softmax(dim=0)
            values = [share * value_LD[other, part] for other, share in zip(seen, shares, strict=True)]
            heads.append(torch.stack(values).sum(dim=0))
        rows.append(torch.cat(heads))
    out: Tensor = attention.out(torch.stack(rows))
    return out
