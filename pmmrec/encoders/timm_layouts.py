"""Where the architectures of timm keep their blocks, and how they lay out what they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from pmmrec.adapters import Sites
from pmmrec.encoders.trainable import Layout


@dataclass(frozen=True)
class TimmLayout(Layout):
    """What else must be known of a class of timm: how its features are laid out, and whether its size is fixed."""

    output: Literal["tokens", "NCHW", "NHWC"] = "NCHW"
    is_size_fixed: bool = False
    has_windows: bool = False  # windows keep their size when images change theirs


# Heads are gone with num_classes=0, but their tensors still stand in checkpoints, and some of their norms in models.
_HEADS = r"(head|fc|classifier|fc_norm|head_norm|attn_pool|global_pool)\..+"
_MLP = (r"mlp\.fc1", r"mlp\.fc2")
_VIT_SITES = Sites(r"attn\.qkv", r"attn\.qkv", (r"attn\.qkv", r"attn\.proj"), _MLP)
_ATTN, _STAGE_MLP = r"blocks\.\d+\.attn", (r"blocks\.\d+\.mlp\.fc1", r"blocks\.\d+\.mlp\.fc2")
_QKV, _PROJ = rf"{_ATTN}\.qkv", rf"{_ATTN}\.proj"
_SWIN_SITES = Sites(_QKV, _QKV, (_QKV, _PROJ), _STAGE_MLP)
# Its attention reads the weights of qkv without calling it.
_SWIN_V2_SITES = Sites(_PROJ, _PROJ, (_ATTN, _PROJ), _STAGE_MLP, uncalled=_QKV)
_EVA = r"attn\.proj"  # of keys, queries and values it reads the weights without calling them, where they are one
_EVA_QUERY = rf"attn\.(q_proj|v_proj)|{_EVA}"
_EVA_KEY = rf"attn\.(k_proj|v_proj)|{_EVA}"
_EVA_SITES = Sites(_EVA_QUERY, _EVA_KEY, ("attn", _EVA), (r"mlp\.fc1(_g)?", r"mlp\.fc2"), uncalled=r"attn\.qkv")
_SWIN = TimmLayout(
    blocks=r"layers\.\d+",
    after=r"norm",
    unused=_HEADS,
    block_call="hidden",
    sites=_SWIN_SITES,
    output="NHWC",
    is_size_fixed=True,
    has_windows=True,
)
LAYOUTS: Mapping[str, TimmLayout] = {
    "ConvNeXt": TimmLayout(blocks=r"stages\.\d+", after=r"norm_pre", unused=_HEADS, block_call="hidden"),
    # EVA-02, and DINOv3. Its blocks are told where patches lie.
    "Eva": TimmLayout(
        blocks=r"blocks\.\d+", after=r"norm", unused=_HEADS, sites=_EVA_SITES, output="tokens", is_size_fixed=True
    ),
    "EfficientNet": TimmLayout(blocks=r"blocks\.\d+", after=r"conv_head|bn2", unused=_HEADS, block_call="hidden"),
    # MobileNet v3 and v4; some maps stand above the pooled features.
    "MobileNetV3": TimmLayout(
        blocks=r"blocks\.\d+", unused=rf"{_HEADS}|(conv_head|norm_head)\..+", block_call="hidden"
    ),
    "RegNet": TimmLayout(blocks=r"s\d+", after=r"final_conv", unused=_HEADS, block_call="hidden"),
    "ResNet": TimmLayout(blocks=r"layer\d+", unused=_HEADS, block_call="hidden"),
    "ResNetV2": TimmLayout(blocks=r"stages\.\d+", after=r"norm", unused=_HEADS, block_call="hidden"),
    "SwinTransformer": _SWIN,
    "SwinTransformerV2": replace(_SWIN, sites=_SWIN_V2_SITES),
    "VisionTransformer": TimmLayout(
        blocks=r"blocks\.\d+",
        after=r"norm",
        unused=_HEADS,
        pooler="attn_pool",
        pools_by="attention",
        block_call="hidden",
        sites=_VIT_SITES,
        output="tokens",
        is_size_fixed=True,
    ),
}
REFUSED: Mapping[str, str] = {
    "Beit": "its blocks share relative positions; the same weights are read by `type: hf_vision` (beit)",
    "DenseNet": "each of its layers reads all before it, so that no block lies between two others",
    "VisionTransformerSAM": "it finds outlines in images of 1,024 pixels, and has no vector of a whole one",
}
