"""A checkpoint that is damaged, or does not fit its own model, is refused with words that say what is wrong."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sealing import edit_tensors, seal

from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models.recommender import Recommender
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender

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
        (
            lambda state: state.update({BIAS: torch.ones(9)}),
            r"dense\.bias has shape \(9,\), but config.json asks for \(8,\)",
        ),
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
