"""Tiny configurations of every text and vision architecture that can be an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmmrec.encoders.text_layouts import LAYOUTS as TEXT_LAYOUTS

SIZES: Mapping[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
_SHARED_HEADS = {**SIZES, "num_key_value_heads": 1, "head_dim": 4}
_WINDOWS = {**_SHARED_HEADS, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
_T5 = {"d_model": 8, "num_layers": 2, "num_heads": 2, "d_ff": 16, "d_kv": 4, "relative_attention_num_buckets": 8}
_SMALL_EMBEDDING = {**SIZES, "embedding_size": 4}
# Those with other settings than the sizes above and `max_position_embeddings`.
_TEXTS: Mapping[str, Mapping[str, Any]] = {
    "albert": _SMALL_EMBEDDING,
    "deberta-v2": {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
    "distilbert": {"dim": 8, "n_layers": 2, "n_heads": 2, "hidden_dim": 16},
    "electra": _SMALL_EMBEDDING,
    "eurobert": {**SIZES, "num_key_value_heads": 1},
    "gemma": _SHARED_HEADS,
    "gemma2": {**_WINDOWS, "attn_logit_softcapping": 1.0},
    "gemma3_text": _WINDOWS,
    "gpt2": {"n_embd": 8, "n_layer": 2, "n_head": 2},
    "llama": {**SIZES, "num_key_value_heads": 1},
    "mistral": {**SIZES, "num_key_value_heads": 1, "sliding_window": 4},
    "modernbert": {**SIZES, "local_attention": 6, "layer_types": ["full_attention", "sliding_attention"]},
    "mt5": _T5,
    "opt": {
        "hidden_size": 8,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 16,
        "word_embed_proj_dim": 4,
    },
    "qwen2": {**SIZES, "num_key_value_heads": 1},
    "qwen3": _SHARED_HEADS,
    "rembert": {**SIZES, "input_embedding_size": 4, "output_embedding_size": 4},
    "t5": _T5,
    "umt5": _T5,
}
_WITHOUT_LONGEST = ("mt5", "t5", "umt5")


def tiny_text(model_type: str) -> dict[str, Any]:
    """A configuration with two blocks, 8 wide, and 40 positions."""
    longest = {} if model_type in _WITHOUT_LONGEST else {"max_position_embeddings": 40}
    return {"model_type": model_type, **longest, **_TEXTS.get(model_type, SIZES)}


def whole_of(model_type: str) -> str:
    """A way to pool that the layout has."""
    return "mean" if TEXT_LAYOUTS[model_type].is_causal else "cls"
