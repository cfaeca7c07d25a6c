"""A dry run of the large recipe counts the parameters of the released code, without reading or drawing a weight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import Pmmrec, sources
from safetensors.torch import save_file

from pmmrec.encoders.text import HFText, HFTextConfig
from pmmrec.encoders.vision_hf import HFVision, HFVisionConfig

BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}


@pytest.fixture
def weights(home: Path) -> list[str]:
    """Folders with the configurations of XLM-R base and CLIP ViT-B/32; a dry run opens no weights."""
    text, vision = home / "xlmr", home / "clip"
    text.mkdir()
    vision.mkdir()
    architecture = {"model_type": "xlm-roberta", "max_position_embeddings": 514, "type_vocab_size": 1, **BASE}
    HFText.start(HFTextConfig(architecture=architecture, vocab_size=600), text, ["a few words"])
    settings = json.loads((text / "config.json").read_text())
    (text / "config.json").write_text(json.dumps({**settings, "vocab_size": 250_002}))
    architecture = {"model_type": "clip_vision_model", "image_size": 224, "patch_size": 32, **BASE}
    HFVision.start(HFVisionConfig(architecture=architecture), vision, [])
    for folder in (text, vision):
        save_file({"none": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    return [
        f"--weights=FacebookAI/xlm-roberta-base={text}",
        f"--weights=openai/clip-vit-base-patch32={vision}",
    ]


@pytest.mark.parametrize("recipe", ["pretrain/pmmrec", "pretrain/pmmrec_paper"])
def test_parameters_are_the_released_ones(recipe: str, weights: list[str], world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("pretrain", recipe, *sources(world), *weights, "--dry-run")
    assert result.code == 0, result.output
    counts = parameters_of(result.output)
    block = 12 * 768**2 + 13 * 768  # attention, feed-forward, two norms
    projection = 768**2 + 768
    assert counts["text_encoder"] == (277_453_056 + projection, 2 * block + projection)  # no pooler
    assert counts["vision_encoder"][1] == 2 * block + projection
    assert counts["objectives/nid"] == (3 * 769, 3 * 769)


def parameters_of(output: str) -> dict[str, tuple[int, int]]:
    """Part -> all parameters and those that learn, from the table of a dry run."""
    table = [line.strip("│").split("│") for line in output.splitlines() if line.startswith("│")]
    return {name.strip(): (_number(count), _number(learning)) for name, count, learning in table}


def _number(text: str) -> int:
    return int(text.replace(",", ""))
