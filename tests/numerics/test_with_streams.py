"""Vectors of ids with streams of stored vectors beside them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from pmmrec.context import BuildContext, Catalogue
from pmmrec.contracts import ItemInputs, StoredInputs
from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.encoded import encoder_name
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.with_streams import WithStreams, WithStreamsConfig
from pmmrec.objectives import objectives
from pmmrec.packing import HostArray
from pmmrec.testing.world import task_of
from pmmrec.train.task import TrainingTask

STREAMS = {
    "text": {"features": {"content": 3}, "head": {"activation": "none"}},
    "image": {"features": {"pixels": 2}, "unit_length": True, "head": {"activation": "none"}},
}


def test_a_stream_is_a_layer_over_stored_vectors_and_is_made_where_it_is_read() -> None:
    config = WithStreamsConfig.model_validate({"streams": STREAMS})
    encoder = WithStreams(config, BuildContext(4, catalogues=[Catalogue("books", 3, "aa")])).double()
    content, pixels = torch.rand(2, 3, dtype=torch.float64), torch.rand(3, 2, dtype=torch.float64)
    fields = {
        "content": StoredInputs(content, HostArray([0, 2])),
        "pixels": StoredInputs(pixels, HostArray([0, 1, 2])),
    }
    has_U = {"content": torch.tensor([True, False, True])} | {
        name: torch.ones(3, dtype=torch.bool) for name in ("pixels", "item_id")
    }
    items = ItemInputs(torch.zeros(3, dtype=torch.long), torch.tensor([2, 0, 1]), has_U, fields)
    assert not encoder(items).streams_UD
    encoder.asked, encoder.graph_streams = frozenset({"text"}), frozenset({"image"})
    assert (dict(encoder.streams), dict(encoder.training_streams)) == ({"image": 4}, {"text": 4})
    vectors = encoder(items)
    assert torch.equal(vectors.fused_UD, encoder.item_table.vector.weight[[2, 0, 1]])
    layers = {name: encoder.contents[name].feature_encoder.projections[0] for name in STREAMS}
    text_UD = torch.zeros(3, 4, dtype=torch.float64)
    text_UD[[0, 2]] = F.linear(content, layers["text"].weight, layers["text"].bias)
    unit = pixels / pixels.square().sum(dim=1, keepdim=True).sqrt()
    image_UD = F.linear(unit, layers["image"].weight, layers["image"].bias)
    torch.testing.assert_close(vectors.streams_UD["text"], text_UD, rtol=0, atol=1e-15)
    torch.testing.assert_close(vectors.streams_UD["image"], image_UD, rtol=0, atol=1e-15)


def test_vectors_are_kept_apart_by_the_streams_that_a_graph_reads() -> None:
    model = {
        "width": 8,
        "item_encoder": {"type": "with_streams", "streams": STREAMS},
        "user_encoder": {"type": "user_table"},
    }
    names = []
    for read in (frozenset[str](), frozenset({"text"}), frozenset({"text", "image"})):
        torch.manual_seed(0)
        config = ModelConfig.model_validate(model)
        recommender = build(config, {}, [Catalogue("books", 3, "aa", 2, "bb")])
        recommender.item_encoder.graph_streams = read
        names.append(encoder_name(recommender, config))
    assert len(set(names)) == 3


def test_a_stream_that_is_not_there_or_is_made_twice_is_refused() -> None:
    config = objectives.config({"type": "bpr", "stream": "sound"})
    recommender = task_of(objectives.part_class(config)(config, BuildContext(8))).recommender
    with pytest.raises(RecipeError, match=r"objectives.sound: asks for sound vectors of items, .* with_streams"):
        TrainingTask.of(recommender, {"sound": config}, 8)
    twice = {"streams": {"text": STREAMS["text"], "words": STREAMS["text"]}}
    with pytest.raises(ValidationError, match="content is read twice"):
        WithStreamsConfig.model_validate(twice)
    towers = [{"type": "towers", "text": {"type": "hf_text", "weights": "any"}, "text_fields": [name]} for name in "ab"]
    with pytest.raises(ValidationError, match="text_encoder is in two of them; let one stream read all of its fields"):
        WithStreamsConfig.model_validate({"streams": dict(zip("ab", towers, strict=True))})


def test_stored_vectors_of_zeros_cannot_be_compared(world: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(world / "boutique", tmp_path / "boutique"))
    vectors = np.ones((Domain.open(folder).num_items, 3), dtype=np.float32)
    vectors[5], vectors[6] = np.nan, 0
    store_vectors(Domain.open(folder), vectors, "content", "ones")
    domain = Domain.open(folder)
    with pytest.raises(DataError, match=f"of 1 items is all zeros .the first is {domain.item_ids[6].as_py()}."):
        domain.item_feature("content").read()
    with pytest.raises(DataError, match="items have no feature 'other'"):
        domain.item_feature("other")
