"""Texts and images of items through one network of transformers (CLIP, GroupViT, ViLT, FLAVA)."""
# Shapes: R rows of one field, U items, T text tokens, P image tokens, K tokens of both, H width of the network,
# D width.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldInputs, PixelInputs, PixelSpec, TokenInputs, TokenStates
from pmmrec.encoders import joint_encoders
from pmmrec.encoders.huggingface import read_config
from pmmrec.encoders.joint_layouts import LAYOUTS, REFUSED, JointLayout
from pmmrec.encoders.joint_network import JointNetwork, JointNetworkConfig, additive, half, text_rows
from pmmrec.encoders.pixels import Normalise, PixelConfig, refuse_uneven, square_side
from pmmrec.encoders.preprocessor import read_scale, write_preprocessor
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.modality import Modality
from pmmrec.packing import HostArray
from pmmrec.rows import laid_out

_SIZES: Mapping[str, Any] = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
_TEXT = {**_SIZES, "max_position_embeddings": 24}
_IMAGE = {**_SIZES, "image_size": 16, "patch_size": 8}


class HFJointConfig(JointNetworkConfig, PixelConfig):
    """Settings of a network of transformers that reads a text and the pixels of an image."""

    type: Literal["hf_joint"] = "hf_joint"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"architecture": {"model_type": "vilt", **_TEXT, **_IMAGE}, "vocab_size": 300, "max_tokens": 12},
        {
            "architecture": {"model_type": "clip", "projection_dim": 8, "text_config": _TEXT, "vision_config": _IMAGE},
            "vocab_size": 300,
            "max_tokens": 12,
            "head": {"layers": 1},
        },
    )


@dataclass(frozen=True)
class _Rows:
    """What a network reads: texts as they come, and pixels of the scale that it was trained on."""

    text: TokenInputs
    pixels_RCHW: Tensor
    image_index_R: HostArray
    has_U: Mapping[str, Tensor]

    @property
    def num_items(self) -> int:
        return len(self.has_U[Modality.TEXT.value])

    def images_of_items(self, states_RPH: Tensor) -> tuple[Tensor, Tensor]:
        """States of images as those of U items `(U, P, H)`, and which places are of an image `(U, P)`."""
        states_UPH = laid_out(states_RPH, self.image_index_R, self.num_items)
        return states_UPH, self.has_U[Modality.IMAGE.value][:, None].expand(states_UPH.shape[:2])


@joint_encoders.register("hf_joint", HFJointConfig)
class HFJoint(JointNetwork):
    """Encode texts and images with one network of transformers; a projection brings the whole to the common width D.

    The joint encoders of MMSR (https://arxiv.org/abs/2403.17372, Table 6). CLIP and GroupViT give the projected vector
    of the text and that of the image, not normalised, which are joined; zeros stand for a field that an item lacks. A
    text is pooled at its last token. ViLT and FLAVA let the tokens of both see one another, and `pool` says what stands
    for the item; tokens of a field that an item lacks are seen by no other. For ViLT, which pools at the first word, an
    item without a text has the empty one. `trainable_blocks` counts blocks of each encoder where there are two; in
    FLAVA the layers above both train with these, and in GroupViT a block of the images is a stage.

    Differs from transformers in training alone: ViLT reads patches in their order, where transformers shuffles them,
    which changes no vector; GroupViT assigns patches to groups without noise, as when it ranks, where transformers
    draws Gumbel noise, and its batch norms keep the statistics and weights that they were trained with.

    Example:
        model:
          item_encoder:
            type: joint
            encoder: {type: hf_joint, architecture: {model_type: vilt, num_hidden_layers: 4}, max_tokens: 40}
    """

    layouts = LAYOUTS
    refused = REFUSED

    def __init__(self, config: HFJointConfig, context: BuildContext) -> None:
        super().__init__()
        backbone, warnings = context.backbone, list[str]()
        where = str(backbone.folder)
        settings = read_config(backbone.folder)
        layout = self._settings_fit(settings, config, where)
        _refuse_no_cls(settings, where)
        size, own_size = _sizes(config, settings, layout, where)
        self._mean, self._std = read_scale(config, backbone, size, warnings.append)
        self._open(config, context, settings, warnings)
        self.reads = {Modality.TEXT.value: self.text_spec, Modality.IMAGE.value: PixelSpec(size)}
        self._size, self._is_stretched = size, size != own_size
        self.normalise = Normalise(self._mean, self._std)
        self._whole = _WHOLES[settings.model_type]

    @classmethod
    def start(cls, config: HFJointConfig, folder: Path, texts: Iterable[str]) -> None:  # type: ignore[override]  # its own settings
        """Learn a BPE from `texts`; write it, the configuration of `architecture`, and how images must look."""
        of_image = {} if config.image_size is None else {"image_size": config.image_size}
        settings = cls._start(config, folder, texts, of_image)
        layout = cls.layouts[settings.model_type]
        _refuse_no_cls(settings, "architecture")
        size, _ = _sizes(config, settings, layout, "architecture")
        write_preprocessor(folder, size, config.mean, config.std)

    def whole(self, fields: Mapping[str, FieldInputs | TokenStates], has_U: Mapping[str, Tensor]) -> Tensor:
        """What the network says of U items, pooled and without projection, `(U, H)`."""
        images = fields.get(Modality.IMAGE.value)
        if not isinstance(images, PixelInputs):
            raise TypeError("items hold no image, but the model reads it; the batch builder must supply it")
        pixels_RCHW = self.normalise(images.pixels_RCHW, self.projection.weight.dtype)
        return self._whole(self, _Rows(text_rows(fields), pixels_RCHW, images.item_index_R, has_U))

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        return {"size": self._size, "mean": list(self._mean), "std": list(self._std)}

    def save_backbone(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what `AutoModel`, `AutoTokenizer` and `AutoImageProcessor` read."""
        super().save_backbone(folder, state)
        write_preprocessor(folder, self._size, self._mean, self._std)

    def of_two_halves(self, rows: _Rows) -> Tensor:
        """The projected vectors of texts and images, `(U, 2 H)`, of CLIP and GroupViT."""
        packing = rows.text.packing
        id_RT = packing.padded(rows.text.token_id_K, fill=self._tokenizer.pad_token_id)
        # Nothing needs to be masked: no token sees those behind it, and padding stands behind.
        state_RTH = self.backbone.text_model(input_ids=id_RT).last_hidden_state
        text_RH = self.backbone.text_projection(packing.last(packing.packed(state_RTH)))
        options = {"interpolate_pos_encoding": True} if self._is_stretched else {}
        image_RH = self.backbone.visual_projection(
            self.backbone.vision_model(pixel_values=rows.pixels_RCHW, **options).pooler_output
        )
        text_UH = laid_out(text_RH, rows.text.item_index_R, rows.num_items)
        return torch.cat([text_UH, laid_out(image_RH, rows.image_index_R, rows.num_items)], dim=1)

    def of_vilt(self, rows: _Rows) -> Tensor:
        """Tokens of the text, then a cls token and the patches of the image, through all blocks."""
        states_UKH, is_valid_UK = self.vilt_states(rows)
        return self.pooled_states(states_UKH, is_valid_UK)

    def vilt_states(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        """The last hidden state of ViLT, `(U, K, H)`, and which of its places are valid."""
        embeddings = self.backbone.embeddings
        id_UT, is_valid_UT = self.texts_of_items({Modality.TEXT.value: rows.text}, rows.num_items)
        text_UTH = embeddings.text_embeddings(input_ids=id_UT)
        image_UPH, is_valid_UP = rows.images_of_items(_vilt_patches(embeddings, rows.pixels_RCHW))
        of_text_H, of_image_H = embeddings.token_type_embeddings.weight[:2]
        states_UKH = torch.cat([text_UTH + of_text_H, image_UPH + of_image_H], dim=1)
        is_valid_UK = torch.cat([is_valid_UT, is_valid_UP], dim=1)
        mask = additive(is_valid_UK, states_UKH.dtype)
        encoded_UKH = self.backbone.encoder(states_UKH, attention_mask=mask).last_hidden_state
        return self.backbone.layernorm(encoded_UKH), is_valid_UK

    def of_flava(self, rows: _Rows) -> Tensor:
        """Texts and images through encoders of their own, then all states through the layers above both."""
        states_UKH, is_valid_UK = self.flava_states(rows)
        return self.pooled_states(states_UKH, is_valid_UK)

    def flava_states(self, rows: _Rows) -> tuple[Tensor, Tensor]:
        """The last hidden state of FLAVA, `(U, K, H)`: cls, image, text; and which of its places are valid."""
        backbone, packing = self.backbone, rows.text.packing
        id_RT = packing.padded(rows.text.token_id_K, fill=self._tokenizer.pad_token_id)
        is_valid_RT = HostArray(np.arange(packing.longest) < packing.length_R[:, None]).on(id_RT.device)
        embedded_RTH = backbone.text_model.embeddings(input_ids=id_RT)
        mask = additive(is_valid_RT, embedded_RTH.dtype)
        text_RTH = backbone.text_model.encoder(embedded_RTH, attention_mask=mask).last_hidden_state
        text_UTH = laid_out(backbone.text_to_mm_projection(text_RTH), rows.text.item_index_R, rows.num_items)
        is_valid_UT = laid_out(is_valid_RT, rows.text.item_index_R, rows.num_items)
        embedded_RPH = backbone.image_model.embeddings(rows.pixels_RCHW, interpolate_pos_encoding=self._is_stretched)
        image_RPH = backbone.image_model.encoder(embedded_RPH).last_hidden_state
        image_UPH, is_valid_UP = rows.images_of_items(backbone.image_to_mm_projection(image_RPH))
        is_valid_UK = torch.cat([torch.ones_like(is_valid_UP[:, :1]), is_valid_UP, is_valid_UT], dim=1)
        mask = additive(is_valid_UK, image_UPH.dtype)
        joined_UKH = torch.cat([image_UPH, text_UTH], dim=1)
        return backbone.multimodal_model(joined_UKH, attention_mask=mask).last_hidden_state, is_valid_UK


_WHOLES: Mapping[str, Callable[[HFJoint, _Rows], Tensor]] = {
    "clip": HFJoint.of_two_halves,
    "flava": HFJoint.of_flava,
    "groupvit": HFJoint.of_two_halves,
    "vilt": HFJoint.of_vilt,
}


def _vilt_patches(embeddings: Any, pixels_RCHW: Tensor) -> Tensor:
    """A cls token and the patches of images with their positions, `(R, P, H)`, in the order of the image."""
    patch_RHhw = embeddings.patch_embeddings(pixels_RCHW)
    position_1PH = embeddings.position_embeddings
    own = embeddings.config.image_size // embeddings.config.patch_size
    if patch_RHhw.shape[2:] != (own, own):
        position_1Hhw = position_1PH[:, 1:].mT.view(1, -1, own, own)
        stretched = F.interpolate(position_1Hhw, size=patch_RHhw.shape[2:], mode="bilinear", align_corners=True)
        position_1PH = torch.cat([position_1PH[:, :1], stretched.flatten(2).mT], dim=1)
    patch_RPH = patch_RHhw.flatten(2).mT
    image_RPH = torch.cat([embeddings.cls_token.expand(len(patch_RPH), -1, -1), patch_RPH], dim=1) + position_1PH
    dropped_RPH: Tensor = embeddings.dropout(image_RPH)
    return dropped_RPH


def _sizes(config: HFJointConfig, settings: Any, layout: JointLayout, where: str) -> tuple[int, int]:
    """Pixels a side of the images that are read, and of those of the network. RecipeError where the two do not fit."""
    of_image = half(settings, layout.image_half)
    own = square_side(of_image.image_size, where)
    size = config.image_size or own
    refuse_uneven(size, square_side(of_image.patch_size, where))
    if size != own and not layout.resizes:
        raise RecipeError(
            f"image_size: {settings.model_type} reads images of {own} pixels, and no others; leave it out"
        )
    return size, own


def _refuse_no_cls(settings: Any, where: str) -> None:
    """CheckpointError for a FLAVA without a token for the whole: an item could have nothing to see."""
    if not getattr(getattr(settings, "multimodal_config", None), "use_cls_token", True):
        raise CheckpointError(
            f"{where}: use_cls_token: false: the token that stands for an item is missing; set it to true"
        )
