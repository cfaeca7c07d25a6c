"""A checkpoint opens exactly as it was saved, and replaces another whole or not at all."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pmmrec.context import Catalogue
from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender
from pmmrec.settings import validate
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender
from pmmrec.zoo.save import save_checkpoint

Score = Callable[[Recommender], Tensor]
FUSION, TEXT = "fusion/part.safetensors", "text_encoder/model.safetensors"


def load(folder: Path) -> Recommender:
    return load_recommender(Checkpoint.open(folder))


def test_scores_after_saving_and_loading_are_bit_equal(run: Any, saved: Path, score: Score) -> None:
    loaded = load(saved)
    assert not loaded.training
    assert torch.equal(score(loaded), score(run.recommender.eval()))


def test_every_tensor_comes_back(run: Any, saved: Path) -> None:
    expected, loaded = run.recommender.state_dict(), load(saved).state_dict()
    assert list(loaded) == list(expected)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_the_layout_is_one_folder_for_each_part(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {
        "model_index.json",
        "text_encoder",
        "vision_encoder",
        "fusion",
        "user_encoder",
        "objectives",
        "recipe.yaml",
        "metrics.json",
        "README.md",
    }
    assert {path.name for path in (saved / "fusion").iterdir()} == {"part.json", "part.safetensors"}
    assert {"config.json", "model.safetensors", "tokenizer.json", "part.json", "part.safetensors"} <= {
        path.name for path in (saved / "text_encoder").iterdir()
    }


def test_only_objectives_with_parameters_are_saved(saved: Path) -> None:
    assert [path.name for path in (saved / "objectives").iterdir()] == ["noise_detection"]
    assert list(Checkpoint.open(saved).objectives) == ["noise_detection"]


def test_the_index_describes_the_checkpoint(run: Any, saved: Path) -> None:
    checkpoint = Checkpoint.open(saved)
    assert checkpoint.system == "pmmrec"
    assert checkpoint.provenance == {"domains": ["demo"]}
    assert checkpoint.metrics == {"valid/hr@10": 0.25}
    assert checkpoint.model_config == run.model_config
    assert {name: (entry.family, entry.type) for name, entry in checkpoint.parts.items()} == {
        "text_encoder": ("text encoder", "hf_text"),
        "vision_encoder": ("vision encoder", "hf_vision"),
        "fusion": ("fusion", "merge_attention"),
        "user_encoder": ("user encoder", "transformer"),
    }
    assert checkpoint.objectives["noise_detection"].family == "objective"
    assert checkpoint.verify() == []


def test_each_part_describes_itself(saved: Path) -> None:
    about = json.loads((saved / "fusion" / "part.json").read_text())
    assert (about["family"], about["type"], about["width"]) == ("fusion", "merge_attention", 8)
    assert about["settings"]["num_heads"] == 2


def test_a_text_encoder_opens_with_plain_transformers(run: Any, saved: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(saved / "text_encoder", add_pooling_layer=False)
    expected = run.recommender.parts["text_encoder"].backbone.state_dict()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.items())
    tokenizer = AutoTokenizer.from_pretrained(saved / "text_encoder")
    ours = run.recommender.item_encoder.reads["text"].tokenizer
    assert tokenizer(["red shoe"])["input_ids"] == ours.encode(["red shoe"])


def test_tensors_are_taken_from_the_state_and_not_from_the_module(run: Any, tmp_path: Path) -> None:
    state = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in run.state.items()}
    run.save(tmp_path / "a", state=state)
    loaded = load(tmp_path / "a").state_dict()
    assert all(torch.equal(loaded[name], state[f"recommender.{name}"]) for name in loaded)


def test_views_and_transposed_tensors_are_saved_correctly(run: Any, tmp_path: Path) -> None:
    state = {name: torch.stack((tensor, tensor), dim=-1)[..., 1] for name, tensor in run.state.items()}
    run.save(tmp_path / "a", state=state)
    loaded = load(tmp_path / "a").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in run.recommender.state_dict().items())


def test_a_table_of_ids_serves_only_its_own_items(tmp_path: Path) -> None:
    tree = {"width": 8, "item_encoder": {"type": "ids"}, "user_encoder": {"type": "transformer"}}
    config = validate(ModelConfig, tree, "test")
    mine, same_size = Catalogue("a", 5, "f1"), Catalogue("a", 5, "f2")
    recommender = build(config, {}, [mine])
    state = {f"recommender.{name}": tensor for name, tensor in recommender.state_dict().items()}
    save_checkpoint(
        tmp_path / "ids",
        system="sasrec_id",
        model_config=config,
        recommender=recommender,
        objectives={},
        state=state,
        recipe="",
        metrics={},
        card="",
        provenance={},
    )
    checkpoint = Checkpoint.open(tmp_path / "ids")
    loaded = load_recommender(checkpoint, [Catalogue("renamed", 5, "f1")])
    assert torch.equal(loaded.parts["item_table"].vector.weight, recommender.parts["item_table"].vector.weight)
    with pytest.raises(CheckpointError, match="start item_table fresh"):
        load_recommender(checkpoint, [same_size])


def test_an_existing_checkpoint_is_not_overwritten(run: Any, saved_copy: Path) -> None:
    with pytest.raises(RecipeError, match="exists already; choose another name or ask to replace it"):
        run.save(saved_copy)


def test_a_checkpoint_can_be_replaced(other: Any, saved_copy: Path, score: Score) -> None:
    other.save(saved_copy, replace=True)
    assert torch.equal(score(load(saved_copy)), score(other.recommender.eval()))
    assert [path.name for path in saved_copy.parent.iterdir()] == [saved_copy.name]


def test_tensors_missing_in_the_state_are_named_and_nothing_is_written(run: Any, tmp_path: Path) -> None:
    state = run.state
    del state["recommender.item_encoder.fusion.mm_cls"]
    with pytest.raises(
        CheckpointError, match=r"fusion: the state to save lacks recommender\.item_encoder\.fusion\.mm_cls"
    ):
        run.save(tmp_path / "a", state=state)
    assert list(tmp_path.iterdir()) == []


def test_tensors_without_a_part_are_named(run: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no part and no objective: recommender\.stray"):
        run.save(tmp_path / "a", state={**run.state, "recommender.stray": torch.ones(1)})


def test_a_model_with_tensors_outside_its_parts_is_not_saved(other: Any, tmp_path: Path) -> None:
    other.recommender.register_buffer("stray", torch.ones(1))
    with pytest.raises(CheckpointError, match="tensors of the model belong to no part: stray"):
        other.save(tmp_path / "a")


def test_tensors_that_share_memory_are_named(run: Any, tmp_path: Path) -> None:
    state = run.state
    first, second = [name for name in state if name.endswith("norm.weight") and "user_encoder" in name][:2]
    state[second] = state[first]
    with pytest.raises(CheckpointError, match=r"user_encoder: tensors share memory: .*give each its own copy"):
        run.save(tmp_path / "a", state=state)


class KilledError(Exception):
    """Stands for a kill."""


def test_a_failed_save_leaves_the_previous_checkpoint(run: Any, other: Any, saved_copy: Path, score: Score) -> None:
    def die(*_: object) -> None:
        raise KilledError

    other.recommender.parts["vision_encoder"].save_backbone = die
    with pytest.raises(KilledError):
        other.save(saved_copy, replace=True)
    assert Checkpoint.open(saved_copy).verify() == []
    assert torch.equal(score(load(saved_copy)), score(run.recommender.eval()))


def test_what_a_killed_save_left_is_ignored_and_cleaned_by_the_next(other: Any, saved_copy: Path, score: Score) -> None:
    incomplete = saved_copy.with_name(saved_copy.name + ".incomplete")
    (incomplete / "text_encoder").mkdir(parents=True)
    assert Checkpoint.open(saved_copy).verify() == []
    other.save(saved_copy, replace=True)
    assert not incomplete.exists()
    assert torch.equal(score(load(saved_copy)), score(other.recommender.eval()))


def test_a_kill_between_the_two_renames_leaves_the_previous_checkpoint(
    run: Any, saved_copy: Path, score: Score
) -> None:
    saved_copy.rename(saved_copy.with_name(saved_copy.name + ".previous"))
    assert torch.equal(score(load(saved_copy)), score(run.recommender.eval()))
    run.save(saved_copy, replace=True)
    assert [path.name for path in saved_copy.parent.iterdir()] == [saved_copy.name]


def test_a_checkpoint_is_evaluated_on_the_split_of_its_recipe(saved_copy: Path) -> None:
    assert Checkpoint.open(saved_copy).split.type == "leave_one_out"  # its recipe names none
    (saved_copy / "recipe.yaml").write_text("data: {split: {type: leave_one_out}}\n")
    assert Checkpoint.open(saved_copy).split == LeaveOneOutConfig()
    (saved_copy / "recipe.yaml").write_text("data: {split: {type: by_moon}}\n")
    with pytest.raises(CheckpointError, match=r"recipe.yaml: data.split: no split is called 'by_moon'"):
        _ = Checkpoint.open(saved_copy).split
