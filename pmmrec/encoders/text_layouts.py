"""Where the text encoders of transformers keep their blocks, and how they must be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pmmrec.adapters import Sites
from pmmrec.encoders.trainable import Layout

HALVES = {"clip": "clip_text_model", "siglip": "siglip_text_model"}


@dataclass(frozen=True)
class TextLayout(Layout):
    """What else must be known of a text architecture."""

    is_causal: bool = False  # token 0 sees nothing but itself
    positions_follow_padding: bool = False  # the first token's position is pad_token_id + 1
    has_positions: bool = True  # a table of positions limits the length
    packs: bool = True  # reads texts one after another; False: only side by side, padded to the longest
    width_name: str = "hidden_size"  # setting that holds the width of the last hidden state
    generates: bool = False  # keeps keys and values for a next token, unless told that there is none
    masks_itself: bool = False  # makes a mask where it is given none, and looks into it
    fills_window: bool = False  # trained on texts that are padded to all positions, without a mask


def _sites(query: str, key: str, value: str, attention_out: str, feed_forward: tuple[str, str]) -> Sites:
    # Values enter: DeBERTa's queries and keys may be made of positions too.
    return Sites(f"{query}|{value}", f"{key}|{value}", (value, attention_out), feed_forward)


def _causal_sites(feed_forward: tuple[str, str], output: str = "out") -> Sites:
    q, k, v, out = (rf"self_attn\.{name}_proj" for name in ("q", "k", "v", output))
    return _sites(q, k, v, out, feed_forward)


_FEED_FORWARD = (r"intermediate\.dense", r"output\.dense")
_SELF = r"attention\.self\."
_BERT_SITES = _sites(f"{_SELF}query", f"{_SELF}key", f"{_SELF}value", r"attention\.output\.dense", _FEED_FORWARD)
_DEBERTA_SITES = _sites(
    f"{_SELF}query_proj", f"{_SELF}key_proj", f"{_SELF}value_proj", r"attention\.output\.dense", _FEED_FORWARD
)
_ATTN = r"attention\.attn\."
_MPNET_SITES = _sites(f"{_ATTN}q", f"{_ATTN}k", f"{_ATTN}v", f"{_ATTN}o", _FEED_FORWARD)
_GROUP = r"albert_layers\.\d+\."
_ALBERT_SITES = _sites(
    rf"{_GROUP}attention\.query",
    rf"{_GROUP}attention\.key",
    rf"{_GROUP}attention\.value",
    rf"{_GROUP}attention\.dense",
    (f"{_GROUP}ffn", f"{_GROUP}ffn_output"),
)
_DISTILBERT_SITES = _sites(
    r"attention\.q_lin",
    r"attention\.k_lin",
    r"attention\.v_lin",
    r"attention\.out_lin",
    (r"ffn\.lin1", r"ffn\.lin2"),
)
_MODERN_SITES = _sites(r"attn\.Wqkv", r"attn\.Wqkv", r"attn\.Wqkv", r"attn\.Wo", (r"mlp\.Wi", r"mlp\.Wo"))
_T5_ATTN, _T5_FF = r"layer\.0\.SelfAttention\.", r"layer\.1\.DenseReluDense\."
_T5_SITES = _sites(
    f"{_T5_ATTN}q", f"{_T5_ATTN}k", f"{_T5_ATTN}v", f"{_T5_ATTN}o", (rf"{_T5_FF}wi(_0)?", rf"{_T5_FF}wo")
)
_OPT_SITES = _causal_sites(("fc1", "fc2"))
_CLIP_SITES = _causal_sites((r"mlp\.fc1", r"mlp\.fc2"))

_BERT = TextLayout(
    blocks=r"encoder\.layer\.\d+",
    unused=r"pooler\..+",
    pooler="pooler",
    block_call="hidden_and_mask",
    sites=_BERT_SITES,
)
_ROBERTA = replace(_BERT, positions_follow_padding=True)
_ROTARY = TextLayout(
    blocks=r"layers\.\d+",
    has_positions=False,
    is_gated=True,
    block_call="backbone",
    embeddings=r"embeddings",
    sites=_causal_sites((r"mlp\.gate_proj", r"mlp\.down_proj"), "o"),
)
_DECODER = replace(_ROTARY, after=r"norm", is_causal=True, generates=True)
_T5 = TextLayout(
    blocks=r"encoder\.block\.\d+",
    after=r"encoder\.final_layer_norm",
    has_positions=False,
    packs=False,  # the first block tells the others how far tokens are apart
    is_gated=True,
    sites=_T5_SITES,
)
_RELATIVE = replace(_BERT, block_call=None, packs=False)  # blocks ask for relative positions too
LAYOUTS: Mapping[str, TextLayout] = {
    # All layers of ALBERT share the weights of their group: a group is a block.
    "albert": TextLayout(
        blocks=r"encoder\.albert_layer_groups\.\d+", unused=r"pooler\..+", checkpoints=False, sites=_ALBERT_SITES
    ),
    "bert": _BERT,
    "camembert": _ROBERTA,
    "clip_text_model": TextLayout(
        blocks=r"(text_model\.)?encoder\.layers\.\d+",
        after=r"(text_model\.)?final_layer_norm",
        sites=_CLIP_SITES,
        is_causal=True,
        packs=False,  # no row may be longer than its positions
    ),
    "data2vec-text": _ROBERTA,
    "deberta-v2": replace(_RELATIVE, pooler="", sites=_DEBERTA_SITES),
    "distilbert": TextLayout(blocks=r"transformer\.layer\.\d+", block_call="hidden_and_mask", sites=_DISTILBERT_SITES),
    "electra": replace(_BERT, pooler=""),
    "ernie": _BERT,
    "eurobert": replace(_ROTARY, after=r"norm"),
    "gemma": _DECODER,
    # Its scores are capped, which attention over packed texts does not do.
    "gemma2": replace(_DECODER, block_call=None, packs=False, masks_itself=True),
    "gemma3_text": _DECODER,  # causal unless the configuration says otherwise, as EmbeddingGemma's does
    # Its linear maps are transposed (Conv1D), and no adapter is known to them here.
    "gpt2": TextLayout(blocks=r"h\.\d+", after=r"ln_f", is_causal=True, generates=True),
    "gte": _ROTARY,
    "llama": _DECODER,
    "megatron-bert": replace(_BERT, after=r"encoder\.ln", block_call=None, packs=False, masks_itself=True),
    "mistral": _DECODER,
    "modernbert": TextLayout(
        blocks=r"layers\.\d+",
        after=r"final_norm",
        block_call="backbone",
        embeddings="embeddings",
        has_positions=False,
        sites=_MODERN_SITES,
    ),
    "mpnet": replace(_RELATIVE, positions_follow_padding=True, checkpoints=False, sites=_MPNET_SITES),
    "mt5": _T5,
    "nomic_bert": _ROTARY,
    "opt": TextLayout(
        blocks=r"decoder\.layers\.\d+",
        after=r"decoder\.(final_layer_norm|project_out)",
        is_causal=True,
        generates=True,
        width_name="word_embed_proj_dim",
        sites=_OPT_SITES,
    ),
    "qwen2": _DECODER,
    "qwen3": _DECODER,
    "rembert": replace(_BERT, block_call=None, packs=False, masks_itself=True),
    "roberta": _ROBERTA,
    "siglip_text_model": TextLayout(
        blocks=r"(text_model\.)?encoder\.layers\.\d+",
        after=r"(text_model\.)?final_layer_norm",
        unused=r"(text_model\.)?head\..+",
        sites=_CLIP_SITES,
        packs=False,
        fills_window=True,
    ),
    "t5": _T5,
    "umt5": _T5,
    "xlm-roberta": _ROBERTA,
    "xlm-roberta-xl": TextLayout(
        blocks=r"encoder\.layer\.\d+",
        after=r"encoder\.LayerNorm",
        unused=r"pooler\..+",
        pooler="pooler",
        positions_follow_padding=True,
        sites=_BERT_SITES,
    ),
}
_TOGETHER = "it reads a text and an image together, as the item encoder `joint` does"
REFUSED: Mapping[str, str] = {
    "bart": "an encoder with a decoder, of which no encoder alone is read; t5 is",
    "big_bird": "its attention is over blocks of 64 tokens, to which each text would be padded",
    "bloom": "it subtracts distances from attention scores, which packed texts do not",
    "deberta": "its queries, keys and values are one map of another order; deberta-v2 is read",
    "flava": _TOGETHER,
    "funnel": "it halves the length of a text from block to block",
    "groupvit": _TOGETHER,
    "longformer": "its attention is over windows of 512 tokens, to which each text would be padded",
    "vilt": _TOGETHER,
    "visual_bert": _TOGETHER,
    "xlnet": "its states depend on an order of words that is drawn, and on earlier texts",
}


def sees_earlier_alone(layout: TextLayout, settings: Any) -> bool:
    """Whether a token sees none behind it, as a configuration says."""
    return layout.is_causal and not getattr(settings, "use_bidirectional_attention", False)
