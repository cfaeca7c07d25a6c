"""Where the vision encoders of transformers keep their blocks, and what their states are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pmmrec.adapters import Sites
from pmmrec.encoders.trainable import Layout

HALVES = {
    "clip": "clip_vision_model",
    "siglip": "siglip_vision_model",
    "siglip2": "siglip2_vision_model",
}


@dataclass(frozen=True)
class VisionLayout(Layout):
    """What else must be known of a vision architecture."""

    num_prefix_tokens: int = 1  # cls first; 0: there is none
    has_registers: bool = False  # more prefix tokens, as many as the configuration says
    has_windows: bool = False  # windows over maps that shrink from stage to stage do not fit every size
    is_map: bool = False  # the last hidden state is a map, (R, C, H, W), and images may have any size
    width_name: str = "hidden_size"  # setting that holds the width of the last hidden state, or of each stage
    reads_patches: bool = False  # is given the patches of an image instead of its pixels


def _sites(attention: str, mlp: tuple[str, str], out: str = "o_proj") -> Sites:
    q, k, v = (f"{attention}{letter}_proj" for letter in "qkv")
    return Sites(f"{q}|{v}", f"{k}|{v}", (v, f"{attention}{out}"), mlp)


def _older(layer: str = "") -> Sites:
    """How earlier releases of transformers, and Swin v2 still, name the maps of a layer."""
    q, k, v = (rf"{layer}attention\.(attention|self)\.{name}" for name in ("query", "key", "value"))
    out = rf"{layer}attention\.output\.dense"
    return Sites(f"{q}|{v}", f"{k}|{v}", (v, out), (rf"{layer}intermediate\.dense", rf"{layer}output\.dense"))


def _either(one: Sites, other: Sites) -> Sites:
    return Sites(
        f"{one.query_value}|{other.query_value}",
        f"{one.key_value}|{other.key_value}",
        (f"{one.attention[0]}|{other.attention[0]}", f"{one.attention[1]}|{other.attention[1]}"),
        (f"{one.feed_forward[0]}|{other.feed_forward[0]}", f"{one.feed_forward[1]}|{other.feed_forward[1]}"),
    )


_MLP = (r"mlp\.fc1", r"mlp\.fc2")
_VIT_SITES = _either(_sites(r"attention\.", _MLP), _older())
_CLIP_SITES = _sites(r"self_attn\.", _MLP, "out_proj")
_IN_STAGE = r"blocks\.\d+\."
_SWIN_SITES = _either(
    _sites(rf"{_IN_STAGE}attention\.", (rf"{_IN_STAGE}mlp\.fc1", rf"{_IN_STAGE}mlp\.fc2")), _older(_IN_STAGE)
)

# Releases of transformers name the lists of blocks, and the maps in them, differently: both stand in the patterns.
_VIT = VisionLayout(
    blocks=r"(encoder\.layer|layers)\.\d+",
    after=r"layernorm",
    unused=r"(pooler|embeddings\.mask).*",
    pooler="pooler",
    block_call="hidden",  # images have no padding, and older releases of transformers give these blocks no mask
    sites=_VIT_SITES,
)
_BEIT = replace(_VIT, block_call=None)  # blocks may ask for relative positions
_SWIN = VisionLayout(
    blocks=r"encoder\.layers\.\d+",
    after=r"layernorm",
    unused=r"embeddings\.mask_token",
    num_prefix_tokens=0,
    has_windows=True,
    sites=_SWIN_SITES,
)
_STAGES = VisionLayout(
    blocks=r"encoder\.stages\.\d+",
    unused=r"layernorm\..+",  # of the pooled map
    pooler="layernorm",
    pooler_reads="mean",
    block_call="hidden",
    num_prefix_tokens=0,
    is_map=True,
    width_name="hidden_sizes",
    checkpoints=False,
)
_MAPS = replace(_STAGES, unused="", pooler="")
_SIGLIP = VisionLayout(
    blocks=r"(vision_model\.)?encoder\.layers\.\d+",
    after=r"(vision_model\.)?post_layernorm",
    unused=r"(vision_model\.)?head\..+",
    pooler=r"(vision_model\.)?head",
    pools_by="attention",
    num_prefix_tokens=0,
    block_call="hidden_and_mask",
    sites=_CLIP_SITES,
)
LAYOUTS: Mapping[str, VisionLayout] = {
    "beit": _BEIT,
    # The last hidden state is taken before post_layernorm, which CLIP puts on the cls token only.
    "clip_vision_model": VisionLayout(
        blocks=r"(vision_model\.)?encoder\.layers\.\d+",
        unused=r"(vision_model\.)?post_layernorm\..+",
        pooler=r"(vision_model\.)?post_layernorm",
        pooler_reads="cls",
        block_call="hidden_and_mask",
        sites=_CLIP_SITES,
    ),
    "convnext": _STAGES,
    "convnextv2": _STAGES,
    "data2vec-vision": _BEIT,
    "deit": replace(_VIT, num_prefix_tokens=2),
    "dinov2": replace(_VIT, pooler=""),
    "dinov2_with_registers": replace(_VIT, pooler="", has_registers=True),
    # The mean of its last map stands before the places as a token.
    "dinov3_convnext": VisionLayout(
        blocks=r"model\.stages\.\d+", after=r"layer_norm", width_name="hidden_sizes", checkpoints=False
    ),
    "dinov3_vit": VisionLayout(
        blocks=r"(model\.)?layer\.\d+",
        after=r"norm",
        unused=r"embeddings\.mask_token",
        has_registers=True,
        sites=_sites(r"attention\.", (r"mlp\.up_proj", r"mlp\.down_proj")),
    ),
    "efficientnet": replace(
        _MAPS,
        blocks=r"encoder\.blocks\.\d+",
        after=r"encoder\.top_(conv|bn|activation)",
        width_name="hidden_dim",
    ),
    "ijepa": replace(_VIT, pooler="", num_prefix_tokens=0),
    "regnet": _MAPS,
    "resnet": _MAPS,
    "siglip2_vision_model": replace(_SIGLIP, reads_patches=True),
    "siglip_vision_model": _SIGLIP,
    "swin": _SWIN,
    "swinv2": _SWIN,
    "vit": _VIT,
    "vit_mae": replace(
        _VIT, pooler="", fixed=r"embeddings\.position_embeddings"
    ),  # waves, which transformers does not train
    "vit_msn": replace(_VIT, pooler=""),
}
_TOGETHER = "it reads a text and an image together, as the item encoder `joint` does"
REFUSED: Mapping[str, str] = {
    "flava": _TOGETHER,
    "groupvit": _TOGETHER,
    "mobilenet_v2": "its last map has a width that its configuration does not say; timm's mobilenetv3 models are read",
    "poolformer": "its blocks lie in two lists; timm has more of that kind, such as convnext",
    "timm_wrapper": "a model of timm in another wrapping; open its folder with `type: timm`",
    "vilt": _TOGETHER,
}
