"""Attention with dropout of its weights on a CPU, where torch has no kernel for it and keeps a weight three times."""
# Shapes: K places of all rows, k of some rows; G rows, H heads, T places of the longest, E width of a head.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pmmrec.dropout import drop_, kept


class RowsAtOnce(NamedTuple):
    """Neighbouring rows of a packing that attend in one call, padded to the longest of them."""

    num_rows: int
    longest: int
    num_places: int  # without padding
    source: Tensor | None  # int64, for each padded place, flat, the one that is read; None: all rows are equally long
    valid: Tensor | None  # int64, the padded places, flat, that are no padding
    is_allowed: Tensor | None  # bool, which keys a query may see; None: all, or with `is_causal` those not behind it
    is_causal: bool

    def is_hidden(self, device: torch.device) -> Tensor | None:
        """Bool: which keys a query does not see; None: it sees all."""
        if self.is_allowed is not None:
            return ~self.is_allowed
        return (
            torch.ones(self.longest, self.longest, dtype=torch.bool, device=device).triu_(1) if self.is_causal else None
        )

    def padded(self, x_kHE: Tensor) -> Tensor:
        """`(G, H, T, E)`; padding repeats a place of its row."""
        return self._heads(x_kHE if self.source is None else x_kHE.index_select(0, self.source))

    def padded_with_zeros(self, x_kHE: Tensor) -> Tensor:
        """`(G, H, T, E)`."""
        if self.valid is not None:
            zeros = x_kHE.new_zeros((self.num_rows * self.longest, *x_kHE.shape[1:]))
            x_kHE = zeros.index_copy_(0, self.valid, x_kHE)
        return self._heads(x_kHE)

    def _heads(self, x_kHE: Tensor) -> Tensor:
        """Copied once, not by each product that reads it; one row alone need not be copied."""
        x_GHTE = x_kHE.view(self.num_rows, self.longest, *x_kHE.shape[1:]).transpose(1, 2)
        return x_GHTE if self.num_rows == 1 else x_GHTE.contiguous()

    def write(self, x_GHTE: Tensor, to_kHE: Tensor) -> None:
        """Write what is no padding to `(k, H, E)`."""
        if self.valid is None:
            to_kHE.view(self.num_rows, self.longest, *to_kHE.shape[1:]).copy_(x_GHTE.transpose(1, 2))
        else:
            torch.index_select(x_GHTE.transpose(1, 2).flatten(0, 1).to(to_kHE.dtype), 0, self.valid, out=to_kHE)


class AttentionWithDropout(torch.autograd.Function):
    """Scaled dot-product attention `(K, H, E)` that keeps a byte for each weight, and computes weights once more.

    Arguments: query, key, value, the rows that attend in one call, one after another, the share of dropped weights, and
    the scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_KHE: Tensor,
        key_KHE: Tensor,
        value_KHE: Tensor,
        spans: Sequence[RowsAtOnce],
        p: float,
        scale: float,
    ) -> Tensor:
        inputs, kept_bytes = (query_KHE, key_KHE, value_KHE), []
        mixed_KHE = torch.empty_like(query_KHE, memory_format=torch.contiguous_format)
        with torch.autocast("cpu", enabled=False):
            for rows, mixed_kHE, *some in _by_span(spans, mixed_KHE, *inputs):
                query, key, value = (_wide(rows.padded(x_kHE)) for x_kHE in some)
                weight_GHTT = _weights(query, key, rows.is_hidden(query.device), scale)
                is_kept, ctx.factor = kept(weight_GHTT, p)
                rows.write(drop_(weight_GHTT, is_kept, ctx.factor) @ value, mixed_kHE)
                kept_bytes.append(is_kept)
        ctx.save_for_backward(*inputs, *kept_bytes)
        ctx.spans, ctx.scale = spans, scale
        return mixed_KHE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, gradient_KHE = ctx.saved_tensors, gradients[0]  # asked for once: blocks may compute them again
        inputs, kept_bytes = saved[:3], saved[3:]
        found = [torch.empty_like(gradient_KHE, memory_format=torch.contiguous_format) for _ in inputs]
        parts = _by_span(ctx.spans, gradient_KHE, *inputs, *found)
        for is_kept, (rows, gradient_kHE, *some, to_query, to_key, to_value) in zip(kept_bytes, parts, strict=True):
            query, key, value = (_wide(rows.padded(x_kHE)) for x_kHE in some)
            gradient = _wide(rows.padded_with_zeros(gradient_kHE))
            weight_GHTT = _weights(query, key, rows.is_hidden(query.device), ctx.scale)
            of_weight = drop_(gradient @ value.transpose(-2, -1), is_kept, ctx.factor)
            of_score = torch.ops.aten._softmax_backward_data(of_weight, weight_GHTT, -1, weight_GHTT.dtype)
            of_score.mul_(ctx.scale)
            rows.write(of_score @ key, to_query)
            rows.write(of_score.transpose(-2, -1) @ query, to_key)
            rows.write(drop_(weight_GHTT, is_kept, ctx.factor).transpose(-2, -1) @ gradient, to_value)
        return (*found, None, None, None)


def _by_span(spans: Sequence[RowsAtOnce], *every: Tensor) -> Iterator[tuple[Any, ...]]:
    """Each span with its places of several tensors `(K, ...)`."""
    sizes = [rows.num_places for rows in spans]
    return zip(spans, *(torch.split(x_K, sizes) for x_K in every), strict=True)


def _weights(query: Tensor, key: Tensor, is_hidden: Tensor | None, scale: float) -> Tensor:
    score_GHTT = (query * scale) @ key.transpose(-2, -1)
    if is_hidden is not None:
        # Finite: a place of padding may see none, and must not become NaN.
        score_GHTT.masked_fill_(is_hidden, torch.finfo(score_GHTT.dtype).min)
    return score_GHTT.softmax(dim=-1)


def _wide(x: Tensor) -> Tensor:
    """In float32, if its numbers are half as long: so torch's own attention computes on a CPU."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
