"""VisualBERT reads what another network says of an image: patches before or after its blocks, a map, or regions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import ItemInputs, PixelInputs, StoredInputs, TokenInputs
from pmmrec.encoders import encoder_class
from pmmrec.errors import PMMRecError, RecipeError
from pmmrec.models.joint import Joint, JointConfig
from pmmrec.packing import HostArray
from pmmrec.settings import validate
from tests.support.tiny_encoders import tiny_image, tiny_joint

WORDS = ["red shoes", "blue", "a pan"]
HAS = torch.tensor([True, False, True])
VILT = {"type": "hf_joint", "architecture": tiny_joint("vilt"), "vocab_size": 300, "max_tokens": 20}
VISUAL_BERT = {**VILT, "type": "visual_bert", "architecture": tiny_joint("visual_bert")}
REGIONS = {"feature": "boxes", "vectors": 4, "length": 5}
CLIP = {"type": "hf_vision", "architecture": tiny_image("clip_vision_model"), "trainable_blocks": 0}
RESNET = {"type": "hf_vision", "architecture": tiny_image("resnet"), "image_size": 32, "pool": "mean"}


def built(folder: Path, **settings: Any) -> Joint:
    config = validate(JointConfig, {"encoder": VISUAL_BERT, **settings}, "item_encoder")
    backbones = {}
    for part, encoder in config.encoders.items():
        (folder / part).mkdir()
        encoder_class(encoder).start(encoder, folder / part, WORDS)
        backbones[part] = Backbone(folder / part, is_pretrained=False)
    torch.manual_seed(0)
    return Joint(config, BuildContext(6, backbones)).eval()


def items_of(encoder: Joint) -> ItemInputs:
    """Three items, the second of which has no image and no regions."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=generator)
    given = {
        "text": TokenInputs.of(encoder.reads["text"].tokenizer.encode(WORDS)),  # type: ignore[union-attr]
        "image": PixelInputs(pixels, HostArray([0, 2])),
        "boxes": StoredInputs(torch.randn(2, 4, 5, generator=generator), HostArray([0, 2])),
    }
    fields = {field: given[field] for field in encoder.reads}
    has_U = {field: torch.ones(3, dtype=torch.bool) if field == "text" else HAS for field in encoder.reads}
    return ItemInputs(torch.zeros(3, dtype=torch.int64), torch.arange(3), has_U, fields)


def by_library(encoder: Joint, place: int, visual_1PV: torch.Tensor | None) -> torch.Tensor:
    """What the library's forward of an item alone and our projection say."""
    network = encoder.joint_encoder
    ids = torch.tensor(network.reads["text"].tokenizer.encode([WORDS[place]]))  # type: ignore[union-attr]
    states = network.backbone(input_ids=ids, visual_embeds=visual_1PV).last_hidden_state  # type: ignore[operator]
    return network.projection(states[:, 0])[0]  # type: ignore[operator]


@torch.no_grad()
def test_patches_before_and_after_the_blocks_of_a_vit(tmp_path: Path) -> None:
    """The first hidden state of CLIP's images, its cls token first, and the last, brought to the width that is read."""
    for name, num_blocks, layer in (("before", 0, 0), ("after", None, -1)):
        (tmp_path / name).mkdir()
        encoder = built(tmp_path / name, vision={**CLIP, "num_blocks": num_blocks})
        items, vision = items_of(encoder), encoder.vision_encoder
        assert vision is not None
        images = items.fields["image"]
        assert isinstance(images, PixelInputs)
        whole: Any = vision.backbone
        normal = vision.normalise(images.pixels_RCHW, torch.float32)  # type: ignore[operator]
        full = type(whole)(type(whole.config)(**{**whole.config.to_dict(), "num_hidden_layers": 2})).eval()
        lacking = full.load_state_dict(whole.state_dict(), strict=False).missing_keys
        assert (num_blocks is None) == (not lacking)
        states = full(pixel_values=normal, output_hidden_states=True).hidden_states[layer]
        tokens_RPV = vision.projection(states)  # type: ignore[operator]
        found = encoder(items).fused_UD
        for place, visual in ((0, tokens_RPV[:1]), (1, None), (2, tokens_RPV[1:])):
            torch.testing.assert_close(found[place], by_library(encoder, place, visual), rtol=0, atol=1e-6)


@torch.no_grad()
def test_the_places_of_a_map_as_they_are_and_stored_regions(tmp_path: Path) -> None:
    (tmp_path / "map").mkdir()
    network = {**VISUAL_BERT, "architecture": {**tiny_joint("visual_bert"), "visual_embedding_dim": 8}}
    encoder = built(tmp_path / "map", encoder=network, vision={**RESNET, "projection": "none"})
    items, vision = items_of(encoder), encoder.vision_encoder
    assert vision is not None
    map_RPV = vision.hidden(items.fields["image"]).flatten(2).mT  # type: ignore[operator]
    torch.testing.assert_close(encoder(items).fused_UD[2], by_library(encoder, 2, map_RPV[1:]), rtol=0, atol=1e-6)
    for name, length in (("same", 5), ("other", 3)):
        (tmp_path / name).mkdir()
        encoder = built(tmp_path / name, regions={**REGIONS, "length": length})
        items = items_of(encoder)
        boxes = items.fields["boxes"]
        assert isinstance(boxes, StoredInputs)
        boxes = StoredInputs(boxes.vector_RF[:, :, :length], boxes.item_index_R)
        visual_RPV = boxes.vector_RF
        if encoder.region_projection is not None:
            visual_RPV = encoder.region_projection(visual_RPV)
        assert (encoder.region_projection is None) == (length == 5)
        items = ItemInputs(items.domain_U, items.row_U, items.has_U, {**items.fields, "boxes": boxes})
        torch.testing.assert_close(
            encoder(items).fused_UD[2], by_library(encoder, 2, visual_RPV[1:]), rtol=0, atol=1e-6
        )


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "give one of `vision` (an encoder) and `regions` (a stored feature)"),
    ({"vision": CLIP, "regions": REGIONS}, "give one of `vision` (an encoder) and `regions` (a stored feature)"),
    ({"encoder": VILT, "regions": REGIONS}, "regions: has no effect, hf_joint reads pixels itself; remove it"),
    ({"vision": {**RESNET, "projection": "none"}}, "projection: none: resnet gives 8 numbers, but 5 are read"),
    ({"vision": {**RESNET, "num_blocks": 1}}, "num_blocks: resnet has stages, not equal blocks; leave it out"),
    ({"vision": {**CLIP, "num_blocks": 3}}, "num_blocks: 3 asked for, but there are 2; take no more than these"),
]


@pytest.mark.parametrize(("settings", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_images_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        built(tmp_path, **settings)
    assert message in str(error.value)
    assert isinstance(error.value, PMMRecError)
