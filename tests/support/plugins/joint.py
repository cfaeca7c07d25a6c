"""A plugin for tests: the words and the patches of an item attend to one another in one backbone."""
# U items, R rows of a field, T characters, P patches, J = T + P, H width of the backbone, D common width.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pmmrec.blocks import TransformerBlock, attention_allowed
from pmmrec.context import BuildContext
from pmmrec.contracts import FieldInputs, FieldSpec, ItemInputs, ItemVectors, PixelSpec, TextSpec, TokenStates
from pmmrec.encoders import EncoderConfig, JointEncoder, joint_encoders
from pmmrec.encoders.backbone import make_projection
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.models.rows import laid_out

HIDDEN, PATCH, SIZE, FILE = 16, 8, 16, "backbone.safetensors"


class Characters:
    """A token for each character, after one for the whole."""

    max_tokens, pad_token_id, fingerprint = 24, 0, "characters 1"

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[1, *(2 + ord(letter) % 90 for letter in text)][: self.max_tokens] for text in texts]


class OneStreamConfig(EncoderConfig):
    """Settings of the joint encoder; there are none."""

    type: Literal["one_stream"] = "one_stream"


@joint_encoders.register("one_stream", OneStreamConfig)
class OneStream(JointEncoder):
    """One Transformer block over the characters and the patches of an item."""

    reads: ClassVar[Mapping[str, FieldSpec]] = {"text": TextSpec(Characters()), "image": PixelSpec(SIZE)}

    def __init__(self, config: OneStreamConfig, context: BuildContext) -> None:
        super().__init__()
        assert (context.backbone.folder / "config.json").is_file()
        parts = {"letters": nn.Embedding(92, HIDDEN), "patches": nn.Linear(3 * PATCH * PATCH, HIDDEN)}
        self.backbone = nn.ModuleDict({**parts, "block": TransformerBlock(HIDDEN, 2, dropout=0.0)})
        self.projection = make_projection(HIDDEN, context.width)

    def forward(self, fields: Mapping[str, FieldInputs], has_U: Mapping[str, Tensor]) -> TokenStates:
        text, image = fields["text"], fields["image"]
        words_RTH = self.backbone["letters"](text.token_id_RT)
        pixels_RCHW = image.pixels_RCHW.to(words_RTH.dtype) / 255
        patches_RPH = self.backbone["patches"](nn.functional.unfold(pixels_RCHW, PATCH, stride=PATCH).mT)
        x_UJH = torch.cat(
            [
                laid_out(words_RTH, text.item_index_R, has_U["text"]),
                laid_out(patches_RPH, image.item_index_R, has_U["image"]),
            ],
            dim=1,
        )
        is_word_UT = laid_out(text.is_valid_RT, text.item_index_R, has_U["text"])
        is_valid_UJ = torch.cat([is_word_UT, has_U["image"][:, None].expand(-1, patches_RPH.shape[1])], dim=1)
        x_UJH = self.backbone["block"](x_UJH, attention_allowed(is_valid_UJ, is_causal=False))
        tokens_UJD = torch.where(is_valid_UJ[:, :, None], self.projection(x_UJH), 0.0)
        cls_UD = tokens_UJD.sum(dim=1) / is_valid_UJ.sum(dim=1, keepdim=True).clamp(min=1)
        return TokenStates(tokens_UJD, is_valid_UJ, cls_UD)

    def checkpoint_activations(self) -> None:
        raise NotImplementedError

    @classmethod
    def start(cls, config: EncoderConfig, folder: Path, texts: Iterable[str]) -> None:
        del config, texts
        (folder / "config.json").write_text("{}")

    def save_backbone(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        (folder / "config.json").write_text("{}")
        save_file(dict(state), folder / FILE)

    def read_backbone(self, folder: Path) -> dict[str, Tensor]:
        return load_file(folder / FILE)


class JointConfig(ItemEncoderConfig):
    """Settings of an item encoder with one backbone for texts and images."""

    type: Literal["joint"] = "joint"
    encoder: OneStreamConfig = Field(default_factory=OneStreamConfig)

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        return {"joint_encoder": self.encoder}

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(OneStream.reads)


@item_encoders.register("joint", JointConfig)
class Joint(ItemEncoder):
    """The mean of what one encoder says of the words and the patches of an item."""

    def __init__(self, config: JointConfig, context: BuildContext) -> None:
        super().__init__()
        self.joint_encoder = OneStream(config.encoder, context.at("joint_encoder"))

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return {"joint_encoder": self.joint_encoder}

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        return self.joint_encoder.reads

    @property
    def encoders(self) -> Mapping[str, Any]:
        return dict.fromkeys(self.reads, self.joint_encoder)

    def forward(self, items: ItemInputs) -> ItemVectors:
        states: TokenStates = self.joint_encoder(items.fields, items.has_U)
        return ItemVectors(states.cls_RD, {}, {field: items.has_U[field] for field in self.reads})
