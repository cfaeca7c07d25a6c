"""A resumed search must have the same inputs, which may have moved."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import working_in

from pmmrec.tuning.search import Search, SearchPlan

SPACE = "train.optimizer.learning_rate: {log: [1e-4, 1e-2]}\n"
NAMED = "someone/minilm"
About = Callable[..., dict[str, Any]]


@pytest.fixture
def about(world: Path, tmp_path: Path) -> About:
    """The inputs of a search, with changes to its plan."""

    said: list[str] = []

    def of(recipe: str = "finetune/tiny", overrides: tuple[str, ...] = (), **changes: Any) -> dict[str, Any]:
        (tmp_path / "space.yaml").write_text(SPACE)
        plan = {"space": tmp_path / "space.yaml", "trials": 2, "start_from": "none", "on": world / "boutique"}
        told = {"recipe": recipe, "overrides": overrides, **plan, **changes}
        with working_in(tmp_path):
            return Search(SearchPlan.model_validate(told), said.append).about

    return of


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A folder that looks like pretrained weights; only a trial would read them."""
    folder = tmp_path / "minilm"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_settings_that_do_not_affect_metrics_may_change_between_starts(about: About, tmp_path: Path) -> None:
    elsewhere = (f"cache={tmp_path}", f"runs={tmp_path}", "data.workers=1", "prefix_cache=off")
    assert about(overrides=elsewhere) == about()
    assert about(overrides=("seed=2",))["recipe"] != about()["recipe"]


def test_a_checkpoint_is_identified_by_content(about: About, small_run: Path, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    shutil.copytree(small_run / "hub" / "small", here)
    before = about("finetune/full", (), start_from=str(here))
    shutil.copytree(here, there)
    assert about("finetune/full", (), start_from=str(there)) == before
    index = here / "model_index.json"
    tree = json.loads(index.read_text())
    tree["provenance"]["seed"] += 1  # another pretraining, at the same place
    index.write_text(json.dumps(tree))
    after = about("finetune/full", (), start_from=str(here))
    assert [word for word in after if after[word] != before[word]] == ["checkpoint"]


def test_weights_are_identified_by_content(about: About, weights: Path, tmp_path: Path) -> None:
    overrides = (f"model.item_encoder.text.weights={NAMED}",)
    before = about("finetune/small_text", overrides, weights=(f"{NAMED}={weights}",))
    other = Path(shutil.copytree(weights, tmp_path / "other"))
    (other / "README.md").write_text("the same weights")
    assert about("finetune/small_text", overrides, weights=(f"{NAMED}={other}",)) == before
    (other / "model.safetensors").write_bytes(b"WEIGHTS")
    after = about("finetune/small_text", overrides, weights=(f"{NAMED}={other}",))
    assert [word for word in after if after[word] != before[word]] == ["weights"]


def test_weights_that_the_user_did_not_name_are_found_and_identified(about: About, weights: Path) -> None:
    overrides = (f"model.item_encoder.text.weights={weights}",)
    before = about("finetune/small_text", overrides)
    (weights / "model.safetensors").write_bytes(b"WEIGHTS")
    after = about("finetune/small_text", overrides)
    assert [word for word in after if after[word] != before[word]] == ["weights"]
