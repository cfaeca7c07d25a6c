"""Checkpoints are described and checked, even if one of them is broken."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from sealing import edit_tensors, seal

from pmmrec.report.checkpoints import CheckpointFacts, checkpoint_problems, hub_table


@pytest.fixture
def hub(small_run: Path, tmp_path: Path) -> Path:
    for name in ("first", "second"):
        shutil.copytree(small_run / "hub" / "small", tmp_path / name)
    return tmp_path


def test_a_hub_is_listed_by_name(hub: Path) -> None:
    table = hub_table(hub)
    assert [row[0] for row in table.rows] == ["first", "second"]
    assert table.rows[0][1:] == [
        "pmmrec",
        16,
        "text_encoder, vision_encoder, fusion, user_encoder",
        "bazaar, gallery",
    ]


def test_a_broken_checkpoint_does_not_hide_others(hub: Path) -> None:
    (hub / "first" / "model_index.json").write_text("{}")
    assert [(row[0], row[2]) for row in hub_table(hub).rows] == [("first", None), ("second", 16)]


@pytest.mark.parametrize("domains", [5, None, [1, 2], "bazaar"])
def test_a_checkpoint_with_invalid_provenance_is_still_listed(hub: Path, domains: object) -> None:
    tree = json.loads((hub / "first" / "model_index.json").read_text())
    tree["provenance"]["domains"] = domains
    (hub / "first" / "model_index.json").write_text(json.dumps(tree))
    assert hub_table(hub).rows[0][-1] == ""
    assert "learned from nothing" in CheckpointFacts.read("first", hub).table().title


def test_the_parts_of_a_checkpoint_come_with_all_their_numbers(hub: Path) -> None:
    rows = {row[0]: row for row in CheckpointFacts.read("first", hub).table().rows}
    tensors = load_file(hub / "first" / "user_encoder" / "part.safetensors")
    assert rows["user_encoder"][1:] == ["transformer", len(tensors), sum(t.numel() for t in tensors.values())]
    assert rows["objectives/nid"][1:] == ["noise_detection", 2, 16 * 3 + 3]


def test_a_sound_checkpoint_has_no_problems(hub: Path) -> None:
    assert checkpoint_problems("first", hub) == (hub / "first", [])


def test_a_head_with_nan_is_a_problem_even_if_no_run_loads_it(hub: Path) -> None:
    path = "objectives/nid/part.safetensors"
    edit_tensors(hub / "first", path, lambda state: state["head.bias"].fill_(float("nan")))
    seal(hub / "first", path)
    assert checkpoint_problems("first", hub)[1] == [f"{path} holds NaN or infinity in head.bias"]


def test_a_tensor_that_does_not_fit_its_model_is_a_problem_even_if_every_hash_is_right(hub: Path) -> None:
    path = "user_encoder/part.safetensors"
    name = next(iter(load_file(hub / "first" / path)))
    edit_tensors(hub / "first", path, lambda state: state.update({name: state[name].flatten()[:1].clone()}))
    seal(hub / "first", path)
    _, problems = checkpoint_problems("first", hub)
    assert any(name in problem and "of another shape" in problem for problem in problems)
