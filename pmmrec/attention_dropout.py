"""Attention with dropout of its weights on a CPU, where torch has no kernel for it and keeps a weight three times."""
# Shapes: G rows, H heads, T places, E width of a head.

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pmmrec.dropout import kept


class AttentionWithDropout(torch.autograd.Function):
    """Scaled dot-product attention `(G, H, T, E)` that keeps a byte for each weight, and computes weights once more.

    Arguments: query, key, value, which keys a query may see (None: all, or with `is_causal` those not behind it), the
    share of dropped weights, the scale, `is_causal`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        is_allowed: Tensor | None,
        p: float,
        scale: float,
        is_causal: bool,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            weight_GHTT = _weights(query, key, is_allowed, scale, is_causal=is_causal)
            is_kept, factor = kept(weight_GHTT, p)
            ctx.save_for_backward(query, key, value, is_allowed, is_kept)
            ctx.scale, ctx.factor, ctx.is_causal = scale, factor, is_causal
            mixed: Tensor = _dropped(weight_GHTT, is_kept, factor) @ value.to(weight_GHTT.dtype)
        return mixed.to(query.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, is_allowed, is_kept = ctx.saved_tensors
        dtype, gradient = query.dtype, _wide(gradients[0])
        query, key, value = _wide(query), _wide(key), _wide(value)
        weight_GHTT = _weights(query, key, is_allowed, ctx.scale, is_causal=ctx.is_causal)
        of_weight = _dropped(gradient @ value.transpose(-2, -1), is_kept, ctx.factor)
        of_score = torch.ops.aten._softmax_backward_data(of_weight, weight_GHTT, -1, weight_GHTT.dtype).mul_(ctx.scale)
        of_value = _dropped(weight_GHTT, is_kept, ctx.factor).transpose(-2, -1) @ gradient
        of_query, of_key = of_score @ key, of_score.transpose(-2, -1) @ query
        return of_query.to(dtype), of_key.to(dtype), of_value.to(dtype), None, None, None, None


def _dropped(x: Tensor, is_kept: Tensor, factor: float) -> Tensor:
    """`x` times 0 or `factor`, in its own memory: numpy multiplies by bytes several times as fast as torch."""
    if not x.is_meta:
        np.multiply(x.numpy(), is_kept.numpy(), out=x.numpy())
    return x.mul_(factor)


def _weights(query: Tensor, key: Tensor, is_allowed: Tensor | None, scale: float, *, is_causal: bool) -> Tensor:
    score_GHTT = (_wide(query) * scale) @ _wide(key).transpose(-2, -1)
    if is_allowed is None and is_causal:
        is_allowed = score_GHTT.new_ones(score_GHTT.shape[-2:], dtype=torch.bool).tril()
    if is_allowed is not None:
        # Finite: a place of padding may see none, and must not become NaN.
        score_GHTT.masked_fill_(~is_allowed, torch.finfo(score_GHTT.dtype).min)
    return score_GHTT.softmax(dim=-1)


def _wide(x: Tensor) -> Tensor:
    """In float32, if its numbers are half as long: so torch's own attention computes on a CPU."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
