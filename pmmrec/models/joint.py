"""Items by one network that reads their texts and images together."""
# Shapes: R rows of one field, U items, V vectors of an image, F length of each of them, D width.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import (
    FieldInputs,
    FieldSpec,
    ItemInputs,
    ItemVectors,
    Modality,
    StoredInputs,
    TokenStates,
)
from pmmrec.encoders import (
    VISUAL,
    Encoder,
    EncoderConfig,
    JointEncoder,
    VisionEncoder,
    joint_encoders,
    vision_encoders,
)
from pmmrec.encoders.backbone import make_projection
from pmmrec.modality import VectorSpec
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.rows import place_rows
from pmmrec.settings import Config, FeatureName

if TYPE_CHECKING:
    JointField: TypeAlias = EncoderConfig
    VisionField: TypeAlias = EncoderConfig
else:
    JointField, VisionField = joint_encoders.field, vision_encoders.field

_SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
_IMAGE = {"image_size": 16, "patch_size": 8}
_TINY = {"vocab_size": 300, "max_tokens": 12}
_VILT = {"model_type": "vilt", **_SIZES, **_IMAGE}
_VISUAL_BERT = {"model_type": "visual_bert", "visual_embedding_dim": 6, "max_position_embeddings": 24, **_SIZES}


class RegionsConfig(Config):
    """Settings of the stored vectors of an image's regions."""

    feature: FeatureName = Field(description="Name of the stored feature, which holds the vectors of each item.")
    vectors: int = Field(ge=1, description="How many regions an image has (MMSR: 49).")
    length: int = Field(ge=1, description="The length of each vector (2048 of Faster R-CNN with ResNet-101).")


class JointConfig(ItemEncoderConfig):
    """Settings of an item encoder with one network for texts and images."""

    type: Literal["joint"] = "joint"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"encoder": {"type": "hf_joint", "architecture": _VILT, **_TINY}, "normalize": "layer_norm"},
        {
            "encoder": {"type": "visual_bert", "architecture": _VISUAL_BERT, **_TINY},
            "regions": {"feature": "boxes", "vectors": 3, "length": 5},
        },
        {
            "encoder": {"type": "visual_bert", "architecture": _VISUAL_BERT, **_TINY},
            "vision": {"type": "hf_vision", "architecture": {"model_type": "vit", **_IMAGE, **_SIZES}},
        },
    )
    encoder: JointField = Field(description="The network that reads texts and images.")
    vision: VisionField | None = Field(
        default=None, description="Of visual_bert: the encoder whose tokens of an image it reads."
    )
    regions: RegionsConfig | None = Field(
        default=None, description="Of visual_bert: stored vectors of the regions of an image, in place of `vision`."
    )
    normalize: Literal["none", "layer_norm"] = Field(
        default="none", description="layer_norm: item vectors get mean 0 and variance 1 (no parameters)."
    )

    @model_validator(mode="after")
    def _images_come_from_one_place(self) -> Self:
        given = [name for name in ("vision", "regions") if getattr(self, name) is not None]
        if not joint_encoders.part_class(self.encoder).reads_visual:
            if given:
                raise ValueError(f"{given[0]}: has no effect, {self.encoder.type} reads pixels itself; remove it")
        elif len(given) != 1:
            raise ValueError(
                f"{self.encoder.type} reads what another network says of an image: give one of `vision` (an encoder) "
                "and `regions` (a stored feature)"
            )
        return self

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        vision = {} if self.vision is None else {"vision_encoder": self.vision}
        return {"joint_encoder": self.encoder, **vision}

    @property
    def fields(self) -> frozenset[str]:
        more = [] if self.vision is None else [Modality.IMAGE.value]
        more += [] if self.regions is None else [self.regions.feature]
        return joint_encoders.part_class(self.encoder).fields | frozenset(more)

    @property
    def reads_new_items(self) -> bool:
        return self.regions is None


@item_encoders.register("joint", JointConfig)
class Joint(ItemEncoder):
    """One network over the text and the image of an item makes its vector `(D,)`.

    The joint encoders of MMSR (https://arxiv.org/abs/2403.17372, Tables 6 and 7): CLIP, GroupViT, ViLT and FLAVA by
    `hf_joint`, VisualBERT by `visual_bert`. Images reach VisualBERT as the tokens of a vision encoder, brought to the
    width that it reads by the projection of that encoder, or as stored vectors of regions, brought there by a linear
    layer where they have another length. An item that lacks text and image is the zero vector.

    Example:
        model:
          item_encoder:
            type: joint
            encoder: {type: hf_joint, architecture: {model_type: vilt, num_hidden_layers: 2}, max_tokens: 40}
    """

    def __init__(self, config: JointConfig, context: BuildContext) -> None:
        super().__init__()
        self._is_normalized = config.normalize == "layer_norm"
        self._regions = config.regions
        joint_class: Any = joint_encoders.part_class(config.encoder)
        self.joint_encoder: JointEncoder = joint_class(config.encoder, context.at("joint_encoder"))
        self.vision_encoder: VisionEncoder | None = None
        self.region_projection: nn.Linear | None = None
        width = self.joint_encoder.visual_width
        if config.vision is not None:
            vision_class: Any = vision_encoders.part_class(config.vision)
            self.vision_encoder = vision_class(config.vision, replace(context, width=width).at("vision_encoder"))
        if config.regions is not None and config.regions.length != width:
            self.region_projection = make_projection(config.regions.length, width)

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return dict(self.named_children())

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        of_images = {} if self.vision_encoder is None else {Modality.IMAGE.value: self.vision_encoder}
        return {**dict.fromkeys(sorted(self.joint_encoder.fields), self.joint_encoder), **of_images}

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        specs: dict[str, FieldSpec] = dict(self.joint_encoder.reads)
        if self.vision_encoder is not None:
            specs[Modality.IMAGE.value] = self.vision_encoder.pixel_spec
        if self._regions is not None:
            specs[self._regions.feature] = VectorSpec((self._regions.vectors, self._regions.length))
        return specs

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items, each encoded once."""
        has_U = {field: items.has_U[field] for field in self.reads}
        fields: dict[str, FieldInputs | TokenStates] = dict(items.fields)
        if self.joint_encoder.reads_visual:
            fields[VISUAL] = self._tokens_of_images(items)
        fused_UD = self.joint_encoder(fields, has_U).cls_RD
        if self._is_normalized:
            fused_UD = F.layer_norm(fused_UD, fused_UD.shape[-1:])  # the zero vector stays what it is
        is_readable_U1 = torch.stack(list(has_U.values()), dim=1).any(dim=1, keepdim=True)
        return ItemVectors(torch.where(is_readable_U1, fused_UD, 0.0), {}, has_U)

    def _tokens_of_images(self, items: ItemInputs) -> TokenStates:
        field = Modality.IMAGE.value if self._regions is None else self._regions.feature
        rows = items.fields.get(field)
        if rows is None:
            raise ValueError(f"items hold no {field}, but the model reads it; the batch builder must supply it")
        if self.vision_encoder is not None:
            return place_rows(self.vision_encoder(rows), rows.item_index_R, items.num_items)
        if not isinstance(rows, StoredInputs):
            raise TypeError(f"items hold no {field}, but the model reads it; the batch builder must supply it")
        vector_RVF: Tensor = rows.vector_RF.to(next(self.joint_encoder.parameters()).dtype)
        if self.region_projection is not None:
            vector_RVF = self.region_projection(vector_RVF)
        states = TokenStates.of_even(vector_RVF, vector_RVF[:, 0])
        return place_rows(states, rows.item_index_R, items.num_items)
