"""A folder that lacks something, or holds broken numbers, is refused in one line before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pmmrec.context import Backbone, BuildContext
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig
from pmmrec.encoders.weights import WEIGHTS
from pmmrec.errors import CheckpointError
from tests.support.tiny_encoders import tiny_image, tiny_text

CLASSES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "texts": (HFText, HFTextConfig, {"max_tokens": 20, "pool": "mean"}),
    "images": (HFVision, HFVisionConfig, {"pool": "mean"}),
}


@pytest.fixture
def saved(tmp_path: Path, fresh_text: Callable[..., HFText], fresh_vision: Callable[..., HFVision]) -> Any:
    """The folder of a small encoder of texts or of images, by what it reads and its architecture."""

    def save(reads: str, model_type: str) -> Path:
        fresh, tiny = (fresh_text, tiny_text) if reads == "texts" else (fresh_vision, tiny_image)
        encoder = fresh(tiny(model_type), pool="mean")
        encoder.save_backbone(tmp_path / "saved", encoder.backbone.state_dict())
        return tmp_path / "saved"

    return save


def opened(reads: str, folder: Path, **settings: Any) -> Any:
    encoder_class, config_class, usual = CLASSES[reads]
    config = config_class(weights="saved", **{**usual, **settings})
    return encoder_class(config, BuildContext(6, {"": Backbone(folder, is_pretrained=True)}))


PARTS = [("texts", "qwen3"), ("texts", "t5"), ("images", "convnextv2"), ("images", "siglip_vision_model")]


@pytest.mark.parametrize(("reads", "model_type"), PARTS)
def test_a_folder_without_weights(saved: Any, reads: str, model_type: str) -> None:
    folder = saved(reads, model_type)
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"its model\.safetensors cannot be opened: ") as refused:
        opened(reads, folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("reads", "model_type"), PARTS)
def test_weights_of_whole_numbers(saved: Any, reads: str, model_type: str) -> None:
    folder = saved(reads, model_type)
    state = load_file(folder / WEIGHTS)
    name = next(name for name, tensor in state.items() if name.endswith(".weight") and tensor.dim() > 1)
    save_file({**state, name: (state[name] * 100).to(torch.int8)}, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"{name} holds numbers of type I8, as quantised weights do; take"):
        opened(reads, folder)


@pytest.mark.parametrize(("reads", "model_type"), PARTS)
def test_numbers_that_are_not_finite(saved: Any, reads: str, model_type: str) -> None:
    folder = saved(reads, model_type)
    state = load_file(folder / WEIGHTS)
    name = sorted(name for name, tensor in state.items() if tensor.is_floating_point())[-1]
    state[name] = torch.full_like(state[name], torch.inf)
    save_file(state, folder / WEIGHTS, {"format": "pt"})
    with pytest.raises(CheckpointError, match=rf"hold NaN or infinity, such as .*{name}; take another copy") as refused:
        opened(reads, folder)
    assert "\n" not in str(refused.value)


def test_a_folder_without_tokenizer(saved: Any) -> None:
    folder = saved("texts", "qwen3")
    for path in folder.glob("*token*"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer; copy tokenizer\.json of the same backbone there"):
        opened("texts", folder)


def test_a_tokenizer_larger_than_the_embedding(saved: Any) -> None:
    folder = saved("texts", "t5")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 200}))
    with pytest.raises(CheckpointError, match=r"its tokenizer has 300 ids but its embedding 200 rows; the two do not"):
        opened("texts", folder)


def test_a_folder_without_processor_says_what_is_assumed(saved: Any) -> None:
    folder = saved("images", "convnextv2")
    (folder / "preprocessor_config.json").unlink()
    mean, std = opened("images", folder).warnings
    assert "says no mean of pixels; 0.5 is taken" in mean
    assert "says no std of pixels; 0.5 is taken" in std
    assert opened("images", folder, mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)).warnings == ()
