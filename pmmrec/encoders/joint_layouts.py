"""Where the networks of transformers that read a text and an image keep their blocks, and what they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from pmmrec.adapters import Sites
from pmmrec.encoders.trainable import Layout

VISUAL_BERT = "visual_bert"


@dataclass(frozen=True)
class JointLayout(Layout):
    """What else must be known of an architecture that reads texts and images."""

    text_half: str = ""  # key of the configuration of its texts; "": the whole has one configuration
    image_half: str = ""
    # Two vectors, one after the other, as two encoders give them; no token of one sees a token of the other.
    is_two_vectors: bool = False
    resizes: bool = True  # reads images of another size than its own


def _of_clip(layer: str = "") -> Sites:
    q, k, v, out = (rf"{layer}self_attn\.{name}_proj" for name in ("q", "k", "v", "out"))
    return Sites(f"{q}|{v}", f"{k}|{v}", (v, out), (rf"{layer}mlp\.fc1", rf"{layer}mlp\.fc2"))


def _of_bert(inner: str) -> Sites:
    q, k, v = (rf"attention\.{inner}\.{name}" for name in ("query", "key", "value"))
    return Sites(f"{q}|{v}", f"{k}|{v}", (v, r"attention\.output\.dense"), (r"intermediate\.dense", r"output\.dense"))


_CLIP = JointLayout(
    blocks=r"(text|vision)_model\.encoder\.layers\.\d+",
    stacks=(r"text_model\.encoder\.layers\.\d+", r"vision_model\.encoder\.layers\.\d+"),
    after=r"text_model\.final_layer_norm|vision_model\.post_layernorm|(text|visual)_projection",
    unused="logit_scale",
    sites=_of_clip(),
    text_half="text_config",
    image_half="vision_config",
    is_two_vectors=True,
)
_VILT = JointLayout(
    blocks=r"encoder\.layer\.\d+",
    after="layernorm",
    unused=r"pooler\..+",
    pooler="pooler",
    sites=_of_bert("attention"),
)
LAYOUTS: Mapping[str, JointLayout] = {
    "clip": _CLIP,
    "flava": JointLayout(
        blocks=r"(text|image|multimodal)_model\.encoder\.layer\.\d+",
        stacks=(r"text_model\.encoder\.layer\.\d+", r"image_model\.encoder\.layer\.\d+"),
        after=r"multimodal_model|(text|image)_to_mm_projection",
        # The layers above the two encoders read states before the last LayerNorm of these.
        unused=r"logit_scale|(text|image)_projection\..+|(text|image)_model\.(pooler|layernorm)\..+"
        r"|image_model\.embeddings\.mask_token|multimodal_model\.pooler\..+",
        pooler=r"multimodal_model\.pooler",
        sites=_of_bert("attention"),
        text_half="text_config",
        image_half="image_config",
    ),
    # A block of its images is a stage: layers, and the assignment of what they give to groups.
    "groupvit": replace(
        _CLIP,
        blocks=r"text_model\.encoder\.layers\.\d+|vision_model\.encoder\.stages\.\d+",
        stacks=(r"text_model\.encoder\.layers\.\d+", r"vision_model\.encoder\.stages\.\d+"),
        after=r"text_model\.final_layer_norm|vision_model\.layernorm|(text|visual)_projection",
        fixed=r"(text|visual)_projection\.1\..+",
        # Batch statistics would make an item depend on the others of its batch; assignments would draw noise.
        still=r"(text|visual)_projection\.1|vision_model\.encoder\.stages\.\d+\.downsample\.assign",
        sites=_of_clip(r"(layers\.\d+\.)?"),
        resizes=False,
    ),
    "vilt": _VILT,
}
# Reads texts, and in place of pixels what another network says of an image.
VISUAL_LAYOUTS: Mapping[str, JointLayout] = {VISUAL_BERT: replace(_VILT, after="", sites=_of_bert("self"))}
REFUSED: Mapping[str, str] = {
    VISUAL_BERT: "it reads what another network says of an image; say type: visual_bert",
    "vlmo": "neither transformers nor timm has it",
}
