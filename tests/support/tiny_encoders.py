"""Tiny configurations of every architecture of texts and of images that can be an encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pmmrec.encoders.text_layouts import LAYOUTS as TEXT_LAYOUTS
from pmmrec.encoders.vision_layouts import LAYOUTS as VISION_LAYOUTS

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
    if model_type in VISION_LAYOUTS:
        return "cls" if VISION_LAYOUTS[model_type].num_prefix_tokens else "mean"
    return "mean" if TEXT_LAYOUTS[model_type].is_causal else "cls"


IMAGE_SIZE = 32
_PATCHES = {**SIZES, "image_size": IMAGE_SIZE, "patch_size": 8}
_DINO = {key: value for key, value in _PATCHES.items() if key != "intermediate_size"} | {"mlp_ratio": 2}
_SWIN = {
    "image_size": IMAGE_SIZE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [2, 2],
    "window_size": 2,
}
_RESNET = {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "layer_type": "basic"}
_CONVNEXT = {"image_size": IMAGE_SIZE, "hidden_sizes": [4, 8], "depths": [1, 1], "num_stages": 2}
_IMAGES: Mapping[str, Mapping[str, Any]] = {
    "convnext": _CONVNEXT,
    "convnextv2": _CONVNEXT,
    "dinov2": _DINO,
    "dinov2_with_registers": {**_DINO, "num_register_tokens": 2},
    "dinov3_convnext": {key: value for key, value in _CONVNEXT.items() if key != "num_stages"},
    "dinov3_vit": {**_PATCHES, "num_register_tokens": 2},
    "efficientnet": {
        "image_size": IMAGE_SIZE,
        "width_coefficient": 0.1,
        "depth_coefficient": 0.1,
        "hidden_dim": 128,
        "in_channels": [32, 16],
        "out_channels": [16, 24],
        "kernel_sizes": [3, 3],
        "strides": [2, 2],
        "num_block_repeats": [1, 1],
        "expand_ratios": [1, 6],
    },
    "regnet": {"embedding_size": 4, "hidden_sizes": [4, 8], "depths": [1, 1], "groups_width": 4},
    "resnet": _RESNET,
    "siglip2_vision_model": {**SIZES, "num_patches": 16, "patch_size": 8},
    "swin": _SWIN,
    "swinv2": _SWIN,
}


def tiny_image(model_type: str) -> dict[str, Any]:
    """A configuration with two blocks whose tokens are 16 of an image of 32 pixels, or fewer."""
    return {"model_type": model_type, **_IMAGES.get(model_type, _PATCHES)}


_TIMM_VIT = {"depth": 2, "embed_dim": 8, "num_heads": 2, "patch_size": 8}
_TIMM_SWIN = {"window_size": 4, "depths": [1, 1], "embed_dim": 8, "num_heads": [2, 2]}
TIMM: Mapping[str, Mapping[str, Any]] = {
    "ConvNeXt": {"name": "convnext_atto", "depths": [1, 1, 1, 1], "dims": [4, 8, 8, 16]},
    "EfficientNet": {"name": "test_efficientnet"},
    "Eva": {"name": "eva02_tiny_patch14_224", **_TIMM_VIT},
    "MobileNetV3": {"name": "mobilenetv3_small_050"},
    "RegNet": {"name": "regnety_002", "stem_width": 8, "w0": 8, "wa": 16.0, "wm": 2.0, "depth": 8},
    "ResNet": {"name": "resnet18", "channels": [8, 8, 16, 16]},
    "ResNetV2": {"name": "resnetv2_50", "layers": [1, 1, 1, 1], "channels": [8, 16, 16, 32], "stem_chs": 8},
    "SwinTransformer": {"name": "swin_tiny_patch4_window7_224", **_TIMM_SWIN},
    "SwinTransformerV2": {"name": "swinv2_tiny_window8_256", **_TIMM_SWIN},
    "VisionTransformer": {"name": "vit_tiny_patch16_224", **_TIMM_VIT},
}
# Other models of the same classes.
MORE_OF_TIMM: Mapping[str, Mapping[str, Any]] = {
    "convnextv2": {"name": "convnextv2_atto", "depths": [1, 1, 1, 1], "dims": [4, 8, 8, 16]},
    "efficientnet lite": {"name": "efficientnet_lite0"},
    "dinov3": {**_TIMM_VIT, "name": "vit_small_patch16_dinov3", "embed_dim": 24},
    "eva02 base": {**_TIMM_VIT, "name": "eva02_base_patch14_224"},
    "mobilenetv4": {"name": "mobilenetv4_conv_small_050"},
    "siglip": {**_TIMM_VIT, "name": "vit_base_patch16_siglip_224"},
}

# Networks for texts and images: two blocks in each of their encoders, 8 wide.
_WORDS = {**SIZES, "max_position_embeddings": 24}
_STAGES = {"depths": [1, 1, 1], "num_group_tokens": [4, 2, 0], "num_output_groups": [4, 2, 0]}
JOINT: Mapping[str, Mapping[str, Any]] = {
    "clip": {"projection_dim": 6, "text_config": _WORDS, "vision_config": _PATCHES},
    "flava": {"hidden_size": 8, "text_config": _WORDS, "image_config": _PATCHES, "multimodal_config": SIZES},
    "groupvit": {
        "projection_dim": 6,
        "projection_intermediate_dim": 10,
        "text_config": _WORDS,
        "vision_config": {**_PATCHES, **_STAGES, "num_hidden_layers": 3},
    },
    "vilt": {**_WORDS, **_PATCHES},
    "visual_bert": {**_WORDS, "visual_embedding_dim": 5},
}


def tiny_joint(model_type: str) -> dict[str, Any]:
    """A configuration of a network for texts and images."""
    return {"model_type": model_type, **JOINT[model_type]}
