"""A plugin for tests: the words and the patches of an item attend to one another in one backbone."""
# U items, R rows of a field, K characters and patches of all items, H width of the backbone, D common width.

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pmmrec.blocks import TransformerBlock
from pmmrec.context import BuildContext
from pmmrec.contracts import FieldInputs, FieldSpec, PixelSpec, TextSpec, TokenStates
from pmmrec.encoders import EncoderConfig, JointEncoder, joint_encoders
from pmmrec.encoders.backbone import make_projection
from pmmrec.rows import joined, place_rows

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
        if context.backbone.is_pretrained:
            self.backbone.load_state_dict(self.read_backbone(context.backbone.folder))
        self.projection = make_projection(HIDDEN, context.width)

    def forward(self, fields: Mapping[str, FieldInputs], has_U: Mapping[str, Tensor]) -> TokenStates:
        text, image = fields["text"], fields["image"]
        words_KH = self.backbone["letters"](text.token_id_K)
        pixels_RCHW = image.pixels_RCHW.to(words_KH.dtype) / 255
        patches_RPH = self.backbone["patches"](nn.functional.unfold(pixels_RCHW, PATCH, stride=PATCH).mT)
        num_items, first_R = len(has_U["text"]), text.packing.first_R.values
        words = TokenStates(words_KH, first_R, text.packing.length_R, words_KH[first_R])
        patches = TokenStates.of_even(patches_RPH, patches_RPH[:, 0])
        fields = [place_rows(words, text.item_index_R, num_items), place_rows(patches, image.item_index_R, num_items)]
        both = joined(self.backbone["letters"].weight[0], fields)
        token_KD = self.projection(self.backbone["block"](both.token_KD, both.packing))
        start_U, length_U = both.packing.first_R.values[both.row_U], both.packing.length_R[both.row_U]
        is_readable_U1 = torch.stack(list(has_U.values())).any(dim=0)[:, None]
        cls_UD = torch.where(is_readable_U1, both.first(token_KD), 0.0)
        return TokenStates(token_KD, start_U + 1, length_U - 1, cls_UD)

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
