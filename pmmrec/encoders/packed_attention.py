"""Attention of transformers' text encoders over packed texts."""
# Shapes: K tokens of all texts, H heads, E width of a head.

from __future__ import annotations

from typing import Any

from torch import Tensor

from pmmrec.packing import Packing, attend

NAME = "pmmrec_packed"


def read_packed_texts(backbone: Any) -> None:
    """Let a backbone read texts as one long row, `(1, K)`, with their `packing` as a keyword."""
    from transformers import AttentionInterface

    # No mask goes with it: transformers makes none for a name that it knows no mask function of.
    AttentionInterface.register(NAME, _packed_attention)
    # `set_attn_implementation` only warns where it changes nothing: releases before 5.17 refuse ModernBERT, which can.
    backbone.config._attn_implementation = NAME


def _packed_attention(
    module: Any,
    query_1HKE: Tensor,
    key_1HKE: Tensor,
    value_1HKE: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001  # as transformers calls it
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    sliding_window: int | None = None,
    packing: Packing | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """`(1, K, H, E)`, and no weights. A window of n holds the token itself and n - 1 on each side.

    Keys and values may have fewer heads than queries, each of which serves as many neighbouring ones.
    """
    if packing is None:
        raise TypeError(f"{type(module).__name__}: reads packed texts; call it with packing=, or encode with HFText")
    query_KHE, key_KHE, value_KHE = (x_1HKE[0].transpose(0, 1) for x_1HKE in (query_1HKE, key_1HKE, value_1HKE))
    num_shared = query_KHE.shape[1] // key_KHE.shape[1]
    if num_shared > 1:
        key_KHE, value_KHE = (x_KHE.repeat_interleave(num_shared, dim=1) for x_KHE in (key_KHE, value_KHE))
    mixed_KHE = attend(
        query_KHE,
        key_KHE,
        value_KHE,
        packing,
        is_causal=module.is_causal if is_causal is None else is_causal,
        dropout=dropout,
        window=None if sliding_window is None else sliding_window - 1,
        scale=scaling,
    )
    return mixed_KHE[None], None
