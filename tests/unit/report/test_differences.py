"""Differences of two checkpoints are listed by part, tensor, setting and provenance."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from sealing import seal

from pmmrec.report.differences import differences
from pmmrec.tables import PlainTable
from pmmrec.zoo import files
from pmmrec.zoo.checkpoint import Checkpoint

PART = "user_encoder/part.safetensors"


@pytest.fixture
def twins(small_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two copies of the same checkpoint, to change."""
    for name in ("a", "b"):
        shutil.copytree(small_run / "hub" / "small", tmp_path / name)
    return tmp_path / "a", tmp_path / "b"


def told(twins: tuple[Path, Path]) -> dict[str, PlainTable]:
    tables = differences(*(Checkpoint.open(folder) for folder in twins))
    return {table.title.split(":")[0]: table for table in tables}


def rewrite(folder: Path, name: str, content: dict[str, object]) -> None:
    """Change a file of the user encoder and its entry in the index."""
    (folder / name).chmod(0o644)
    save_file(content, folder / name)
    seal(folder, name)


def test_the_same_checkpoint_does_not_differ(twins: tuple[Path, Path]) -> None:
    tables = told(twins)
    assert list(tables) == ["parts"]
    assert {(row[1], row[2]) for row in tables["parts"].rows} == {("the same", 0)}


def test_the_largest_difference_of_each_tensor_is_listed(twins: tuple[Path, Path]) -> None:
    tensors = load_file(twins[1] / PART)
    name, other = sorted(tensors)[:2]
    tensors[name].flatten()[0] += 0.5
    tensors[other].flatten()[0] -= 2
    rewrite(twins[1], PART, tensors)
    tables = told(twins)
    parts = {row[0]: row[1:] for row in tables["parts"].rows}
    assert parts["user_encoder"] == ["differs", 2, pytest.approx(2.0)]
    assert parts["fusion"] == ["the same", 0, None]
    rows = tables["tensors and files that differ"].rows
    assert [row[:3] for row in rows] == [["user_encoder", other, "values"], ["user_encoder", name, "values"]]
    assert rows[1][3] == pytest.approx(0.5)


def test_tensors_that_are_missing_or_of_another_shape_are_named(twins: tuple[Path, Path]) -> None:
    tensors = load_file(twins[1] / PART)
    gone, reshaped = sorted(tensors)[:2]
    shape = tuple(tensors[reshaped].shape)
    tensors[reshaped] = tensors[reshaped].flatten()[:1].clone()
    del tensors[gone]
    rewrite(twins[1], PART, tensors)
    rows = [row[1:] for row in told(twins)["tensors and files that differ"].rows]
    assert [gone, "only in the first", None] in rows
    assert [reshaped, f"{shape} and (1,)", None] in rows


def test_settings_and_provenance_are_listed_by_path(twins: tuple[Path, Path]) -> None:
    tree = files.read_json(twins[1] / files.INDEX_NAME)
    tree["provenance"]["seed"] = 7
    tree["model"]["user_encoder"]["dropout"] = 0.25
    files.write_json(twins[1] / files.INDEX_NAME, tree)
    tables = told(twins)
    assert [row[0] for row in tables["settings"].rows] == ["model.user_encoder.dropout"]
    assert tables["settings"].rows[0][2] == "0.25"
    assert tables["provenance"].rows == [["seed", "3", "7"]]


def test_a_part_that_one_lacks_is_listed(twins: tuple[Path, Path]) -> None:
    tree = files.read_json(twins[1] / files.INDEX_NAME)
    del tree["objectives"]["nid"]
    files.write_json(twins[1] / files.INDEX_NAME, tree)
    assert ["objectives/nid", "only in the first", None, None] in told(twins)["parts"].rows
