"""The example in the docstring of every part is valid, shows the part, and builds a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examples import example_of, types_in

from pmmrec.context import Backbone, Catalogue, InteractionGraph, ItemFeature
from pmmrec.data.batches import DataConfig
from pmmrec.encoders import joint_encoders, text_encoders, vision_encoders
from pmmrec.family import Entry
from pmmrec.models.build import ModelConfig, build
from pmmrec.objectives import objectives
from pmmrec.settings import overlay, validate
from pmmrec.testing.subjects import MODULES, TEXTS
from pmmrec.train.task import TrainingTask

SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VIT = {"model_type": "vit", "image_size": 16, "patch_size": 8, **SIZES}
BASE = {
    "width": 24,
    "item_encoder": {
        "type": "towers",
        "text": {"type": "hf_text", "architecture": {"model_type": "bert", **SIZES}, "vocab_size": 300},
        "vision": {
            "type": "hf_vision",
            "architecture": VIT,
        },
        "fusion": {"type": "merge_attention", "num_heads": 2},
    },
    "user_encoder": {"type": "transformer"},
}
ENCODERS = (text_encoders, vision_encoders, joint_encoders)
ENTRIES = [pytest.param(entry, id=f"{family.name} {entry.name}") for family in MODULES for entry in family]
SIZE = 12
VECTORS = ItemFeature("ab" * 32, lambda: (np.eye(SIZE, dtype=np.float32), np.ones(SIZE, dtype=bool)))
CATALOGUES = [Catalogue("books", SIZE, "aa", SIZE, "bb")]
GRAPHS = [InteractionGraph(SIZE, SIZE, lambda: (np.arange(SIZE), np.arange(SIZE)), lambda _: VECTORS)]


@pytest.mark.parametrize("entry", ENTRIES)
def test_the_example_of_a_part_builds(entry: Entry[Any], tmp_path: Path) -> None:
    example = example_of(entry.part_class)
    assert entry.name in types_in(example)
    assert set(example) <= {"model", "data", "objectives"}
    validate(DataConfig, example.get("data", {}), "data")
    config = validate(ModelConfig, overlay(BASE, example.get("model", {})), "model")
    backbones = {}
    for name, encoder in config.item_encoder.encoders.items():
        (family,) = (one for one in ENCODERS if encoder.type in {entry.name for entry in one})
        (tmp_path / name).mkdir()
        family.part_class(encoder).start(encoder, tmp_path / name, TEXTS)
        backbones[name] = Backbone(tmp_path / name, is_pretrained=False)
    with torch.device("meta"):
        recommender = build(config, backbones, CATALOGUES, GRAPHS)
        terms = {name: objectives.config(tree) for name, tree in example.get("objectives", {}).items()}
        task = TrainingTask.of(recommender, terms, config.width)
    assert entry.part_class in {type(module) for module in task.modules()}
