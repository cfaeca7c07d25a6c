"""A checkpoint opens exactly as it was saved, or an error says what is wrong with it."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sealing import edit_tensors, seal
from torch import Tensor

from pmmrec.context import Catalogue
from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.recommender import Recommender
from pmmrec.settings import validate
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender
from pmmrec.zoo.save import save_checkpoint

Score = Callable[[Recommender], Tensor]
FUSION, TEXT = "fusion/part.safetensors", "text_encoder/model.safetensors"


def load(folder: Path) -> Recommender:
    return load_recommender(Checkpoint.open(folder))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads((folder / files.INDEX_NAME).read_text())
    change(tree)
    (folder / files.INDEX_NAME).write_text(json.dumps(tree))


def told(tree: dict[str, Any]) -> dict[str, str]:
    """What the index says of the tensors of the fusion."""
    tensors: dict[str, str] = tree["parts"]["fusion"]["tensors"]["part.safetensors"]
    return tensors


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


def test_a_folder_without_an_index_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not a checkpoint: it holds no model_index\.json"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.pop("format"), "it states no format"),
        (lambda tree: tree.update(format=2), "format 2 is not known; this pmmrec reads format 1"),
        (lambda tree: tree.update(width=9), "width 9 is not the width of its model, 8"),
        (lambda tree: tree.pop("parts"), "parts: field required"),
        (lambda tree: tree.update(partz={}), "did you mean 'parts'"),
        (lambda tree: tree["parts"]["fusion"].update(folder="../outside"), r"'../outside' leaves the checkpoint"),
        (lambda tree: tree["parts"]["fusion"].update(folder="/etc"), r"'/etc' leaves the checkpoint"),
        (lambda tree: tree["parts"]["fusion"]["files"].update({"../../x": "0" * 64}), r"leaves the checkpoint"),
        (lambda tree: tree["files"].update({"README.md": "abc"}), "string should match pattern"),
        (lambda tree: told(tree).update(mm_cls="F32[8] abc"), "must look like 'F32"),
        (lambda tree: told(tree).update(mm_cls=f"F32[{'9' * 99}] {'0' * 64}"), "must look like 'F32"),
        (lambda tree: tree["parts"]["fusion"]["tensors"].clear(), "every listed .safetensors file and no other"),
        (lambda tree: tree["model"]["item_encoder"].update(type="tower"), "did you mean 'towers'"),
    ],
)
def test_an_invalid_index_is_refused(saved_copy: Path, change: Callable[..., None], message: str) -> None:
    edit_index(saved_copy, change)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(saved_copy)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"_class_name": "StableDiffusionPipeline"}'])
def test_an_index_of_something_else_is_refused(saved_copy: Path, text: str) -> None:
    (saved_copy / files.INDEX_NAME).write_text(text)
    with pytest.raises(CheckpointError, match=r"model_index\.json: (not valid JSON|not the index of a pmmrec)"):
        Checkpoint.open(saved_copy)


@pytest.mark.parametrize("path", [FUSION, TEXT, "text_encoder/config.json", "user_encoder/part.json"])
def test_a_flipped_bit_is_found(saved_copy: Path, path: str) -> None:
    content = bytearray((saved_copy / path).read_bytes())
    content[-9] ^= 1
    (saved_copy / path).write_bytes(content)
    (problem,) = Checkpoint.open(saved_copy).verify()
    assert problem.startswith(f"{path} was changed after it was written (sha256 differs")
    with pytest.raises(CheckpointError, match=f"{Path(path).name} was changed after it was written"):
        load(saved_copy)


@pytest.mark.parametrize("path", [FUSION, TEXT, "vision_encoder/config.json"])
def test_a_missing_file_is_named(saved_copy: Path, path: str) -> None:
    (saved_copy / path).unlink()
    assert Checkpoint.open(saved_copy).verify() == [f"{path} is missing"]
    with pytest.raises(CheckpointError, match=f"{Path(path).name} is missing; take a whole copy"):
        load(saved_copy)


def test_a_file_that_is_not_listed_is_not_trusted(saved_copy: Path) -> None:
    (saved_copy / "text_encoder" / "pytorch_model.bin").write_bytes(b"x")
    assert Checkpoint.open(saved_copy).verify() == ["text_encoder/pytorch_model.bin is not in model_index.json"]
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin is not in model_index\.json"):
        load(saved_copy)


@pytest.mark.parametrize("path", [FUSION, TEXT])
def test_a_file_cut_short_is_refused_even_where_the_index_agrees(saved_copy: Path, path: str) -> None:
    content = (saved_copy / path).read_bytes()
    (saved_copy / path).write_bytes(content[:-40])
    seal(saved_copy, path)
    with pytest.raises(CheckpointError, match="not a whole safetensors file"):
        load(saved_copy)


class Bomb:
    """Creates a file when unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("path", [FUSION, TEXT])
@pytest.mark.parametrize("dump", ["pickle", "torch"])
def test_a_pickle_in_disguise_is_refused_and_not_executed(saved_copy: Path, path: str, dump: str) -> None:
    canary = saved_copy.parent / "canary"
    if dump == "pickle":
        (saved_copy / path).write_bytes(pickle.dumps(Bomb(canary)))
    else:
        torch.save(Bomb(canary), saved_copy / path)
    seal(saved_copy, path)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(saved_copy)
    assert not canary.exists()


def test_a_configuration_that_would_run_code_is_refused(saved_copy: Path) -> None:
    path = saved_copy / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": {"AutoModel": "evil.Evil"}}))
    seal(saved_copy, "text_encoder/config.json")
    with pytest.raises(CheckpointError, match="'auto_map' runs code from elsewhere"):
        load(saved_copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("mm_cls"), "fusion: missing in the checkpoint: mm_cls"),
        (
            lambda state: state.update(mm_cls2=state.pop("mm_cls")),
            "fusion: unknown to the model in the checkpoint: mm_cls2",
        ),
        (lambda state: state.update(stray=torch.ones(1)), "fusion: unknown to the model in the checkpoint: stray"),
        (
            lambda state: state.update(mm_cls=torch.ones(9)),
            r"of another shape in the checkpoint: mm_cls \(9,\) for \(8,\)",
        ),
        (
            lambda state: state.update(mm_cls=torch.ones(8).int()),
            "of another kind in the checkpoint: mm_cls torch.int32",
        ),
    ],
    ids=["missing", "renamed", "extra", "reshaped", "retyped"],
)
def test_tensors_of_a_part_that_do_not_fit_are_named(
    saved_copy: Path, change: Callable[..., None], message: str
) -> None:
    edit_tensors(saved_copy, FUSION, change)
    seal(saved_copy, FUSION)
    with pytest.raises(CheckpointError, match=message):
        load(saved_copy)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(("path", "name"), [(FUSION, "mm_cls"), (TEXT, "encoder.layer.0.output.dense.bias")])
def test_nan_and_infinity_are_refused_with_the_name_of_the_tensor(
    saved_copy: Path, path: str, name: str, number: float
) -> None:
    edit_tensors(saved_copy, path, lambda state: state[name].fill_(number))
    seal(saved_copy, path)
    assert Checkpoint.open(saved_copy).verify() == []
    assert Checkpoint.open(saved_copy).broken_numbers() == [f"{path} holds NaN or infinity in {name}"]
    with pytest.raises(CheckpointError, match=rf"NaN or infinite in the checkpoint: (backbone\.)?{name}"):
        load(saved_copy)


BIAS = "encoder.layer.0.output.dense.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(BIAS), "1 tensors are missing, such as encoder.layer.0.output.dense.bias"),
        (lambda state: state.update(renamed=state.pop(BIAS)), "1 tensors are missing, such as encoder.layer"),
        (lambda state: state.update(stray=torch.ones(1)), "the backbone has no place for stray"),
        (lambda state: state.update({BIAS: torch.ones(9)}), "model.safetensors cannot be opened"),
    ],
    ids=["missing", "renamed", "extra", "reshaped"],
)
def test_tensors_of_a_backbone_that_do_not_fit_are_named(
    saved_copy: Path, change: Callable[..., None], message: str
) -> None:
    edit_tensors(saved_copy, TEXT, change)
    seal(saved_copy, TEXT)
    with pytest.raises(CheckpointError, match=message):
        load(saved_copy)


def test_a_checkpoint_error_is_a_data_error() -> None:
    assert CheckpointError.exit_code == 3
    assert RecipeError.exit_code == 2


def test_false_shapes_in_the_index_are_found(saved_copy: Path) -> None:
    def lie(tree: dict[str, Any]) -> None:
        told = tree["parts"]["fusion"]["tensors"]["part.safetensors"]
        told["mm_cls"] = told["mm_cls"].replace("F32[8]", "F32[4,2]")

    edit_index(saved_copy, lie)
    (problem,) = Checkpoint.open(saved_copy).verify()
    assert "its tensors are not those that model_index.json lists; reshaped: mm_cls (8,) for (4, 2)" in problem


def drop_tensors(tree: dict[str, Any]) -> None:
    for entry in tree["parts"].values():
        del entry["tensors"]


def tell_sizes(tree: dict[str, Any]) -> None:
    drop_tensors(tree)
    tree["parts"]["fusion"]["sizes"] = [8]


@pytest.mark.parametrize("change", [drop_tensors, tell_sizes])
def test_a_checkpoint_without_tensor_descriptions_opens_and_is_verified(
    saved_copy: Path, change: Callable[..., None]
) -> None:
    edit_index(saved_copy, change)
    checkpoint = Checkpoint.open(saved_copy)
    assert checkpoint.verify() == []
    assert sum(checkpoint.sizes(checkpoint.parts["fusion"])) > 8
    edit_tensors(saved_copy, FUSION, lambda state: state.pop("mm_cls"))
    assert checkpoint.verify() == [f"{FUSION} was changed after it was written (sha256 differs)"]


def test_a_checkpoint_is_evaluated_on_the_split_of_its_recipe(saved_copy: Path) -> None:
    assert Checkpoint.open(saved_copy).split.type == "leave_one_out"  # its recipe names none
    (saved_copy / "recipe.yaml").write_text("data: {split: {type: leave_one_out}}\n")
    assert Checkpoint.open(saved_copy).split == LeaveOneOutConfig()
    (saved_copy / "recipe.yaml").write_text("data: {split: {type: by_moon}}\n")
    with pytest.raises(CheckpointError, match=r"recipe.yaml: data.split: no split is called 'by_moon'"):
        _ = Checkpoint.open(saved_copy).split
