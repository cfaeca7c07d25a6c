"""Runs side by side, and the card that a run leaves in its checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pmmrec.errors import DataError
from pmmrec.evaluation.outcome import read_outcome
from pmmrec.report.verdict import comparison, result_rows, write_card
from pmmrec.zoo.checkpoint import Checkpoint


@pytest.fixture
def folders(small_run: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same figures on the same two domains."""
    run = small_run / "runs" / "small"
    pair = (tmp_path / "one", tmp_path / "two")
    for folder in pair:
        folder.mkdir()
        shutil.copyfile(run / "metrics.json", folder / "metrics.json")
    return pair


def _change(folder: Path, **values: object) -> None:
    path = folder / "metrics.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_floors_stand_first_and_once_for_each_domain(folders: tuple[Path, Path]) -> None:
    _change(folders[1], name="other")
    found = result_rows([read_outcome(folder) for folder in folders])
    assert [domain.domain for domain, _ in found] == ["bazaar", "gallery"]
    for _, rows in found:
        assert [row.system for row in rows] == ["random", "popularity", "item-kNN", "small", "other"]
        assert [row.best_epoch is None for row in rows[:3]] == [True] * 3


def test_runs_on_the_same_users_and_rules_are_compared(folders: tuple[Path, Path]) -> None:
    tables = comparison(folders)
    assert len(tables) == 2
    assert all(table.row_count == 5 for table in tables)


def test_other_users_or_rules_are_refused(folders: tuple[Path, Path]) -> None:
    whole = json.loads((folders[1] / "metrics.json").read_text())
    fewer = [{**domain, "num_users": domain["num_users"] - 1} for domain in whole["domains"]]
    elsewhere = [{**domain, "domain": f"other-{domain['domain']}"} for domain in whole["domains"]]
    for change in ({"domains": fewer}, {"domains": elsewhere}, {"seen": "include"}):
        _change(folders[1], **{**whole, **change})
        with pytest.raises(DataError, match="only figures on the same users and rules compare"):
            comparison(folders)


def test_a_run_on_one_of_the_domains_is_compared_there(folders: tuple[Path, Path]) -> None:
    whole = json.loads((folders[1] / "metrics.json").read_text())
    _change(folders[1], domains=whole["domains"][1:])
    assert [table.row_count for table in comparison(folders)] == [4, 5]


def test_figures_that_were_tampered_with_are_bad_data(folders: tuple[Path, Path]) -> None:
    _change(folders[1], surprise=1)
    with pytest.raises(DataError, match="surprise: unknown key"):
        comparison(folders)


def test_the_card_tells_origin_data_figures_and_licence_and_the_checkpoint_stays_whole(
    small_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_run / "runs" / "small" / "checkpoint", tmp_path / "checkpoint"))
    outcome = read_outcome(small_run / "runs" / "small")
    write_card(folder, outcome, "apache-2.0")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in ("license: apache-2.0", "trained from scratch on bazaar, gallery", "item-kNN", "nicl"):
        assert words in card
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.verify() == []
    assert checkpoint.metrics == outcome.model_dump(mode="json")
