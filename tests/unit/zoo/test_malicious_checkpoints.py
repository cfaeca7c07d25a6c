"""Malicious checkpoints whose files all match their index are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmmrec.errors import CheckpointError
from pmmrec.models.recommender import Recommender
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender
from pmmrec.zoo.hub import find_checkpoint


def load(folder: Path) -> Recommender:
    return load_recommender(Checkpoint.open(folder))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tree = json.loads((folder / files.INDEX_NAME).read_text())
    change(tree)
    (folder / files.INDEX_NAME).write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model["user_encoder"].update(num_heads=3), "its model cannot be built: user_encoder.num_heads"),
        (lambda model: model["user_encoder"].update(num_layers=10**9), "user_encoder.num_layers: .* 1000"),
        (lambda model: model["item_encoder"]["fusion"].update(num_layers=10**9), "fusion.num_layers: .* 1000"),
        (lambda model: model["item_encoder"]["vision"].update(image_size=1), "patches of 4 pixels do not fill 1"),
    ],
    ids=["heads", "layers", "fusion layers", "pixels"],
)
def test_a_model_that_cannot_be_built_is_an_error_of_the_checkpoint(
    saved_copy: Path, change: Callable[..., None], message: str
) -> None:
    edit_index(saved_copy, lambda tree: change(tree["model"]))
    with pytest.raises(CheckpointError, match=message):
        load(saved_copy)


def test_a_backbone_with_too_many_blocks_is_refused_before_it_is_built(saved_copy: Path) -> None:
    path = saved_copy / "text_encoder" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 10**9}))
    digest = files.sha256_of(path)
    edit_index(saved_copy, lambda tree: tree["parts"]["text_encoder"]["files"].update({"config.json": digest}))
    with pytest.raises(CheckpointError, match="1,000,000,000 blocks; at most 1,000 are built"):
        load(saved_copy)


def test_a_part_outside_the_checkpoint_is_refused(saved_copy: Path) -> None:
    (saved_copy / "fusion").rename(saved_copy.parent / "elsewhere")
    (saved_copy / "fusion").symlink_to(saved_copy.parent / "elsewhere")
    with pytest.raises(CheckpointError, match="fusion: a link out of the checkpoint"):
        load(saved_copy)


def test_a_part_that_contradicts_the_index_is_named(saved_copy: Path) -> None:
    edit_index(saved_copy, lambda tree: tree["parts"]["fusion"].update(type="gate"))
    (problem,) = Checkpoint.open(saved_copy).verify()
    assert problem == "fusion/part.json says ('fusion', 'merge_attention'), which is fusion 'gate' in model_index.json"


def test_a_checkpoint_may_be_the_current_folder(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    assert Checkpoint.open(Path()).verify() == []
    assert find_checkpoint(".", saved.parent) == Path()
