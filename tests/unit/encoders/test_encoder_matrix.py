"""Every row of the matrix of encoders: its hidden states are the library's, and nothing else changes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from command_line import Pmmrec
from torch import Tensor

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import PixelInputs, TokenInputs, to_device
from pmmrec.encoders import joint_layouts, text_layouts, timm_layouts, vision_layouts
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.encoders.trainable import find_layout
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig
from pmmrec.encoders.vision_timm import TimmConfig, TimmVision
from pmmrec.errors import RecipeError
from pmmrec.packing import HostArray
from pmmrec.report.encoder_matrix import ALL_FROZEN, BOTH, TEXTS, TIMM, EncoderFacts, encoder_facts
from tests.support.tiny_encoders import IMAGE_SIZE, MORE_OF_TIMM, tiny_image, tiny_text, whole_of
from tests.support.tiny_encoders import TIMM as TINY_TIMM

READ = [row for row in encoder_facts() if row.refused is None]
ROWS = [row for row in READ if row.reads != BOTH]  # the others are in test_joint
REFUSED = [row for row in encoder_facts() if row.refused is not None]
WORDS = ["red shoes for running on snow", "blue", "a pan"]
CLASSES: dict[str, tuple[Any, Any]] = {
    TEXTS: (HFText, HFTextConfig),
    "images": (HFVision, HFVisionConfig),
    TIMM: (TimmVision, TimmConfig),
}
CLASS_OF = {
    "convnextv2": "ConvNeXt",
    "dinov3": "Eva",
    "efficientnet lite": "EfficientNet",
    "eva02 base": "Eva",
    "mobilenetv4": "MobileNetV3",
    "siglip": "VisionTransformer",
}


def name_of(row: EncoderFacts) -> str:
    return f"{row.library} {row.architecture}"


def settings_of(row: EncoderFacts) -> dict[str, Any]:
    if row.reads == TEXTS:
        return {"architecture": tiny_text(row.architecture), "vocab_size": 300, "max_tokens": 20}
    if row.library == TIMM:
        return {"architecture": dict(TINY_TIMM[row.architecture]), "image_size": IMAGE_SIZE}
    return {"architecture": tiny_image(row.architecture)}


def pool_of(row: EncoderFacts) -> str:
    return "mean" if row.library == TIMM else whole_of(row.architecture)


def config_of(row: EncoderFacts, **settings: Any) -> Any:
    _, config_class = CLASSES[TIMM if row.library == TIMM else row.reads]
    return config_class(**{**settings_of(row), "pool": pool_of(row), "trainable_blocks": 1, **settings})


def started(row: EncoderFacts, folder: Path, **settings: Any) -> Any:
    """A function that builds a tiny encoder, whose folder is written here."""
    encoder_class, _ = CLASSES[TIMM if row.library == TIMM else row.reads]
    config = config_of(row, **settings)
    folder.mkdir(exist_ok=True)
    encoder_class.start(config, folder, WORDS)
    return lambda: encoder_class(config, BuildContext(6, {"": Backbone(folder, is_pretrained=False)}))


def built(row: EncoderFacts, folder: Path, **settings: Any) -> Any:
    """A tiny encoder with random weights."""
    build = started(row, folder, **settings)
    torch.manual_seed(0)
    encoder = build()
    for name, tensor in encoder.backbone.state_dict().items():
        if tensor.is_floating_point() and "running" not in name:
            tensor.add_(0.05 * torch.randn(tensor.shape))  # some scales start near 0
    return encoder.eval()


def inputs_of(row: EncoderFacts, encoder: Any, places: list[int]) -> TokenInputs | PixelInputs:
    if row.reads == TEXTS:
        return TokenInputs.of(encoder.tokenizer.encode([WORDS[place] for place in places]))
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (3, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8, generator=generator)
    return PixelInputs(pixels[places], HostArray(range(len(places))))


def hidden_by_item(encoder: Any, inputs: TokenInputs | PixelInputs) -> list[Tensor]:
    """The hidden states of each item, in the order of the items."""
    hidden, index_R = encoder.hidden(inputs), inputs.item_index_R.values
    if isinstance(inputs, PixelInputs):
        return list(hidden)
    parts = torch.split(hidden, inputs.packing.length_R.tolist())
    return [parts[row] for row in index_R.argsort().tolist()]


def opened_by_library(row: EncoderFacts, encoder: Any, folder: Path) -> Any:
    """The model that the library itself makes of the saved folder."""
    if row.library == TIMM:
        return timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
    return type(encoder.backbone).from_pretrained(folder).eval()


def by_library(row: EncoderFacts, encoder: Any, model: Any, place: int) -> Tensor:
    """What the library's own model says of one item alone."""
    inputs = inputs_of(row, encoder, [place])
    if row.library == TIMM:
        return model.forward_features(encoder.normalise(inputs.pixels_RCHW, torch.float32))[0]
    if row.reads != TEXTS:
        normal = encoder.normalise(inputs.pixels_RCHW, torch.float32)
        options = encoder._masks(inputs.pixels_RCHW)
        if row.architecture == "siglip2_vision_model":
            normal = torch.nn.functional.unfold(normal, 8, stride=8).transpose(1, 2)
            normal = normal.view(1, 16, 3, 64).transpose(2, 3).flatten(2)
            options = {"pixel_attention_mask": torch.ones(1, 16), "spatial_shapes": torch.tensor([[4, 4]])}
        return model(pixel_values=normal, **options).last_hidden_state[0]
    token_id_1K = inputs.token_id_K[None]
    num_tokens = token_id_1K.shape[1]
    if text_layouts.LAYOUTS[row.architecture].fills_window:
        longest = model.config.max_position_embeddings
        token_id_1K = torch.nn.functional.pad(token_id_1K, (0, longest - num_tokens), value=0)
    return model(input_ids=token_id_1K).last_hidden_state[0, :num_tokens]


def opened(row: EncoderFacts, folder: Path) -> Any:
    """The encoder of a saved folder."""
    encoder_class, config_class = CLASSES[TIMM if row.library == TIMM else row.reads]
    longest = {"max_tokens": 20} if row.reads == TEXTS else {}
    config = config_class(weights="saved", pool=pool_of(row), trainable_blocks=1, **longest)
    return encoder_class(config, BuildContext(6, {"": Backbone(folder, is_pretrained=True)})).eval()


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Equal in float32: 1e-6, or 2e-6 of the largest number; measured 1.7e-6 of it for EfficientNet, 16 blocks deep."""
    largest = float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=0, atol=max(1e-6, 2e-6 * largest))


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_row(row: EncoderFacts, tmp_path: Path) -> None:
    """Hidden states are the library's, an item's do not depend on the others, and saving and cutting change nothing."""
    encoder, saved = built(row, tmp_path / "fresh"), tmp_path / "saved"
    saved.mkdir()
    inputs = inputs_of(row, encoder, [0, 1, 2])
    with torch.no_grad():
        encoder.save_backbone(saved, encoder.backbone.state_dict())
        together, whole_RD = hidden_by_item(encoder, inputs), encoder(inputs).cls_RD
        model = opened_by_library(row, encoder, saved)
        for place in range(3):
            assert_close(together[place], by_library(row, encoder, model, place))
            (alone,) = hidden_by_item(encoder, inputs_of(row, encoder, [place]))
            assert_close(together[place], alone)
        for mine, theirs in zip(together, hidden_by_item(opened(row, saved), inputs), strict=True):
            assert torch.equal(mine, theirs)
        if row.prefix_cache == ALL_FROZEN:
            with pytest.raises(RecipeError, match="cannot be entered between its blocks"):
                _ = encoder.prefix
            encoder.train_top_blocks(encoder._layout, 0)
        assert_close(encoder(encoder.prefix.at_cut(inputs)).cls_RD, whole_RD)


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_every_row_is_tried_without_memory_and_checkpointed_where_it_can_be(row: EncoderFacts, tmp_path: Path) -> None:
    build = started(row, tmp_path)
    with torch.device("meta"):
        dry = build()
    inputs = to_device(inputs_of(row, dry, [0, 1, 2]), torch.device("meta"))
    assert dry(inputs).cls_RD.shape == (3, 6)
    if row.checkpoints:
        dry.checkpoint_activations()
        dry.train()(inputs)
        return
    with pytest.raises(RecipeError, match=r"train\.checkpoint_activations"):
        dry.checkpoint_activations()


def test_there_is_a_tiny_configuration_of_every_class_of_timm() -> None:
    assert set(TINY_TIMM) == set(timm_layouts.LAYOUTS)


@pytest.mark.parametrize("name", MORE_OF_TIMM)
def test_other_models_of_the_same_classes(tmp_path: Path, name: str) -> None:
    example = MORE_OF_TIMM[name]
    (row,) = [row for row in ROWS if row.architecture == CLASS_OF[name]]
    encoder = built(row, tmp_path / "fresh", architecture=dict(example))
    assert type(encoder.backbone).__name__ == row.architecture
    (tmp_path / "saved").mkdir()
    encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
    with torch.no_grad():
        (hidden,) = hidden_by_item(encoder, inputs_of(row, encoder, [0]))
        expected = by_library(row, encoder, opened_by_library(row, encoder, tmp_path / "saved"), 0)
    assert_close(hidden, expected)


@pytest.mark.parametrize("row", REFUSED, ids=name_of)
def test_what_is_refused_says_why(row: EncoderFacts) -> None:
    of_library = {TEXTS: text_layouts, BOTH: joint_layouts}.get(row.reads, vision_layouts)
    module: Any = timm_layouts if row.library == TIMM else of_library
    with pytest.raises(RecipeError, match=rf"^here: '{row.architecture}' is not read: {re.escape(str(row.refused))}$"):
        find_layout(module.LAYOUTS, row.architecture, "here", module.REFUSED)


def test_the_verb_prints_every_architecture(pmmrec: Pmmrec) -> None:
    facts = json.loads(pmmrec("encoders", "--json").output)["encoders"]
    assert len([one for one in facts if one["refused"] is None]) == len(READ) >= 40
    assert {"architecture": "gpt2", "pools": ["mean", "max", "last"], "adapters": []}.items() <= {
        key: value for one in facts if one["architecture"] == "gpt2" for key, value in one.items()
    }.items()
    output = pmmrec("encoders").output
    assert all(row.architecture in output for row in encoder_facts())
