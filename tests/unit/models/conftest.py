"""Tiny models of every plan, and items to feed them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmmrec.context import Backbone
from pmmrec.contracts import FieldInputs, ItemInputs, PixelInputs, PixelSpec, TextSpec, TokenInputs
from pmmrec.encoders import text_encoders, vision_encoders
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender
from pmmrec.packing import HostArray

SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
TEXT = {
    "type": "hf_text",
    "architecture": {"model_type": "bert", "max_position_embeddings": 24, **SIZES},
    "vocab_size": 300,
    "max_tokens": 12,
    "trainable_blocks": 1,
}
VISION = {
    "type": "hf_vision",
    "architecture": {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES},
    "trainable_blocks": 1,
}
FUSION = {"type": "merge_attention", "num_heads": 2}
PLANS: dict[str, dict[str, Any]] = {
    "both": {"type": "towers", "text": TEXT, "vision": VISION, "fusion": FUSION},
    "text": {"type": "towers", "text": TEXT},
    "vision": {"type": "towers", "vision": VISION},
}
TEXTS = ["red shoes", "a blue shirt", "green"]

torch.set_num_threads(1)


@dataclass(frozen=True)
class World:
    """A recommender and what made it."""

    config: ModelConfig
    backbones: dict[str, Backbone]
    recommender: Recommender

    def items(self, has_text: list[bool], has_image: list[bool]) -> ItemInputs:
        """Items with these fields; a stand-in row where no item has one, as the batch builder makes it."""
        encoder = self.recommender.item_encoder
        has_U = {"text": torch.tensor(has_text), "image": torch.tensor(has_image)}
        has_U = {field: has for field, has in has_U.items() if field in encoder.fields}
        fields: dict[str, FieldInputs] = {}
        text, image = encoder.reads.get("text"), encoder.reads.get("image")
        if isinstance(text, TextSpec):
            places = [place for place, has in enumerate(has_text) if has]
            given = TokenInputs.of(text.tokenizer.encode([TEXTS[place] for place in places or [0]]))
            index_R = np.array(places or [len(has_text)])[given.item_index_R.values]
            fields["text"] = dataclasses.replace(given, item_index_R=HostArray(index_R))
        if isinstance(image, PixelSpec):
            places = [place for place, has in enumerate(has_image) if has]
            size = image.size
            generator = torch.Generator().manual_seed(0)
            pixels_UCHW = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=generator)
            fields["image"] = PixelInputs(pixels_UCHW[places or [0]], HostArray(places or [len(has_image)]))
        count = len(has_text)
        return ItemInputs(torch.zeros(count, dtype=torch.long), torch.arange(count), has_U, fields)


@pytest.fixture
def world(tmp_path: Path) -> Callable[..., World]:
    def make(plan: str = "both", **settings: Any) -> World:
        tree = {"width": 8, "item_encoder": {**PLANS[plan], **settings}, "user_encoder": {"type": "transformer"}}
        config = ModelConfig.model_validate(tree)
        backbones = {}
        for name, encoder in config.item_encoder.encoders.items():
            backbones[name] = Backbone(tmp_path / name, is_pretrained=False)
            (tmp_path / name).mkdir()
            family = text_encoders if name == "text_encoder" else vision_encoders
            family.part_class(encoder).start(encoder, tmp_path / name, TEXTS)
        torch.manual_seed(0)
        return World(config, backbones, build(config, backbones))

    return make
