"""Data sets of the Hub are found by their names, in the cache of its client where it is out of reach."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import Pmmrec
from huggingface_hub import constants

from pmmrec.data.domain import Domain
from pmmrec.errors import MachineError, RecipeError
from pmmrec.zoo.hub import find_data_set

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The client of the Hub without a network and with an empty cache."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def shop(offline: Path) -> Path:
    """The data set ann/shop as the client keeps it: a link for each file."""
    repository = offline / "datasets--ann--shop"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "blobs").mkdir()
    tables = {
        "items": pa.table({"item_id": ["a", "b"], "text": ["red", "blue"]}),
        "sales": pa.table({"user_id": ["u", "u"], "item_id": ["b", "a"]}),
    }
    for name, table in tables.items():
        place = repository / "snapshots" / COMMIT / name / "train-00000-of-00001.parquet"
        place.parent.mkdir(parents=True)
        pq.write_table(table, repository / "blobs" / name)
        place.symlink_to(repository / "blobs" / name)
    return repository / "snapshots" / COMMIT


@pytest.mark.parametrize("name", ["ann/shop", "hf://ann/shop", "datasets/ann/shop", f"ann/shop@{COMMIT}"])
def test_a_kept_copy_is_found_by_every_form_of_its_name(shop: Path, name: str) -> None:
    assert find_data_set(name, warn=lambda _: None) == shop


def test_a_copy_that_may_be_old_is_said(shop: Path) -> None:
    heard: list[str] = []
    find_data_set("ann/shop", warn=heard.append)
    assert "the cached copy of hf://ann/shop is used" in heard[0]


def test_a_data_set_that_is_not_to_be_had_is_refused_in_one_line(offline: Path) -> None:
    with pytest.raises(MachineError, match="data set ann/shop: not cached and not available from the Hub") as told:
        find_data_set("ann/shop")
    assert "\n" not in str(told.value)
    for name in ("shop", "../shop", "ann/shop/items", "s3://ann/shop"):
        with pytest.raises(RecipeError, match="not a data set of the Hub, such as OWNER/NAME"):
            find_data_set(name)


def test_a_data_set_of_the_hub_is_imported_by_its_name(shop: Path, home: Path, pmmrec: Pmmrec) -> None:
    words = ("data", "import", "hf", "ann/shop", "--name", "shop", "--out", "domain", "--k-core", "none")
    assert "is no folder of hf, which expects items/ and interactions/" in pmmrec(*words).output
    result = pmmrec(*words, "--set", "interactions=sales")
    assert result.code == 0, result.output
    assert "kind: hf, recognised by items/ and sales/" in result.output
    assert Domain.open(home / "domain").item_ids.to_pylist() == ["a", "b"]
    assert pmmrec(*words, "--set", "interactions=../sales").code == 2
