"""Attention with dropout of its weights on a CPU, where torch has no kernel for it and keeps a weight three times."""
# Shapes: K places of all rows, k of some rows; G rows, H heads, N = G H, T places of the longest, E width of a head.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pmmrec.dropout import drop, kept


@dataclass(frozen=True)
class RowsAtOnce:
    """Neighbouring rows of a packing that attend in one call, padded to the longest of them."""

    num_rows: int
    longest: int
    num_places: int  # without padding
    source: Tensor | None  # int64, for each padded place, flat, the one that is read; None: all rows are equally long
    valid: Tensor | None  # int64, the padded places, flat, that are no padding
    is_allowed: Tensor | None  # bool, which keys a query may see; None: all, or with `is_causal` those not behind it
    is_causal: bool

    def padded(self, x_kHE: Tensor) -> Tensor:
        """`(N, T, E)`; padding repeats a place of its row."""
        return self._heads(x_kHE if self.source is None else x_kHE.index_select(0, self.source))

    def padded_with_zeros(self, x_kHE: Tensor) -> Tensor:
        """`(N, T, E)`."""
        if self.valid is not None:
            zeros = x_kHE.new_zeros((self.num_rows * self.longest, *x_kHE.shape[1:]))
            x_kHE = zeros.index_copy_(0, self.valid, x_kHE)
        return self._heads(x_kHE)

    def _heads(self, x_kHE: Tensor) -> Tensor:
        """Copied once, not by each product that reads it; one row alone need not be copied."""
        x_GHTE = x_kHE.view(self.num_rows, self.longest, *x_kHE.shape[1:]).transpose(1, 2)
        return (x_GHTE if self.num_rows == 1 else x_GHTE.contiguous()).flatten(0, 1)

    def hide(self, score_NTT: Tensor) -> None:
        """Give what a query does not see the lowest score, which is finite: a place of padding may see none."""
        if self.is_allowed is not None:
            is_hidden = ~self.is_allowed
        elif self.is_causal:
            is_hidden = torch.ones(score_NTT.shape[1:], dtype=torch.bool, device=score_NTT.device).triu_(1)
        else:
            return
        score_GHTT = score_NTT.view(self.num_rows, -1, *score_NTT.shape[1:])
        score_GHTT.masked_fill_(is_hidden, torch.finfo(score_NTT.dtype).min)

    def write(self, x_NTE: Tensor, to_kHE: Tensor) -> None:
        """Write what is no padding to `(k, H, E)`."""
        x_GTHE = x_NTE.view(self.num_rows, -1, *x_NTE.shape[1:]).transpose(1, 2)
        if self.valid is None:
            to_kHE.view(x_GTHE.shape).copy_(x_GTHE)
        else:
            torch.index_select(x_GTHE.flatten(0, 1).to(to_kHE.dtype), 0, self.valid, out=to_kHE)


def keeps_weights(query: Tensor) -> bool:
    """Whether weights `(..., T, T)` are kept for the way back, out of the query `(..., T, E)`: they are no larger."""
    return query.shape[-2] <= query.shape[-1]


class AttentionWithDropout(torch.autograd.Function):
    """Scaled dot-product attention `(K, H, E)` that keeps a byte for each weight, and computes large weights once more.

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
        mixed_KHE = torch.empty_like(query_KHE, memory_format=torch.contiguous_format)
        saved: list[Tensor | None] = []
        with torch.autocast("cpu", enabled=False):
            for rows, mixed_kHE, *some in _by_span(spans, mixed_KHE, query_KHE, key_KHE, value_KHE):
                padded = [rows.padded(x_kHE) for x_kHE in some]
                query, key, value = map(_wide, padded)
                weight_NTT = _weights(query, key, rows, scale)
                is_kept, ctx.factor = kept(weight_NTT, p)
                is_small = keeps_weights(query)
                saved += [*padded, is_kept, weight_NTT if is_small else None]
                into = torch.empty_like(weight_NTT) if is_small else weight_NTT
                rows.write(torch.bmm(drop(weight_NTT, is_kept, ctx.factor, into), value), mixed_kHE)
        ctx.save_for_backward(*saved)
        ctx.spans, ctx.scale = spans, scale
        return mixed_KHE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, gradient_KHE = ctx.saved_tensors, gradients[0]  # asked for once: blocks may compute them again
        found = [torch.empty_like(gradient_KHE, memory_format=torch.contiguous_format) for _ in range(3)]
        for place, (rows, gradient_kHE, to_query, to_key, to_value) in enumerate(
            _by_span(ctx.spans, gradient_KHE, *found)
        ):
            *padded, is_kept, weight_NTT = saved[5 * place : 5 * place + 5]
            query, key, value = map(_wide, padded)
            gradient = _wide(rows.padded_with_zeros(gradient_kHE))
            if weight_NTT is None:
                weight_NTT = _weights(query, key, rows, ctx.scale)
            of_weight = torch.bmm(gradient, value.transpose(1, 2))
            of_weight = drop(of_weight, is_kept, ctx.factor, of_weight)
            of_score = torch.ops.aten._softmax_backward_data(of_weight, weight_NTT, -1, weight_NTT.dtype)
            of_score.mul_(ctx.scale)
            rows.write(torch.bmm(of_score, key), to_query)
            rows.write(torch.bmm(of_score.transpose(1, 2), query), to_key)
            dropped_NTT = drop(weight_NTT, is_kept, ctx.factor, of_weight)
            rows.write(torch.bmm(dropped_NTT.transpose(1, 2), gradient), to_value)
        return (*found, None, None, None)


def _by_span(spans: Sequence[RowsAtOnce], *every: Tensor) -> Iterator[tuple[Any, ...]]:
    """Each span with its places of several tensors `(K, ...)`."""
    sizes = [rows.num_places for rows in spans]
    return zip(spans, *(torch.split(x_K, sizes) for x_K in every), strict=True)


def _weights(query: Tensor, key: Tensor, rows: RowsAtOnce, scale: float) -> Tensor:
    score_NTT = torch.bmm(query * scale, key.transpose(1, 2))
    rows.hide(score_NTT)
    return score_NTT.softmax(dim=-1)


def _wide(x: Tensor) -> Tensor:
    """In float32, if its numbers are half as long: so torch's own attention computes on a CPU."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
