"""Runs side by side, and the card that a run leaves in its checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.errors import DataError
from pmmrec.evaluation.floors import FLOORS
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


@pytest.mark.parametrize("text", ["", "[]", "[" * 100_000, '{"name": ' + "9" * 5_000 + "}"])
def test_figures_that_are_none_are_refused(folders: tuple[Path, Path], text: str) -> None:
    (folders[1] / "metrics.json").write_text(text)
    with pytest.raises(DataError, match=r"two/metrics\.json: "):
        comparison(folders)


def test_floors_stand_first_and_once_for_each_domain(folders: tuple[Path, Path]) -> None:
    _change(folders[1], name="other")
    found = result_rows([read_outcome(folder) for folder in folders])
    assert [domain.domain for domain, _ in found] == ["bazaar", "gallery"]
    for _, rows in found:
        assert [row.system for row in rows] == [*FLOORS, "small", "other"]
        assert [row.best_epoch is None for row in rows[:4]] == [True] * 4


def test_runs_on_the_same_users_and_rules_are_compared(folders: tuple[Path, Path]) -> None:
    tables = comparison(folders)
    assert len(tables) == 2
    assert all(table.row_count == 6 for table in tables)


def test_differences_are_paired_over_users(folders: tuple[Path, Path], small_run: Path) -> None:
    """The same ranks differ by nothing; a run that hits each target at once differs by its whole lead."""
    ranks = pq.read_table(small_run / "runs" / "small" / "ranks-bazaar.parquet")
    perfect = ranks.set_column(2, "rank", pa.array([1] * ranks.num_rows))
    for folder, table, name in ((folders[0], ranks, "as it is"), (folders[1], perfect, "perfect")):
        one_domain = json.loads((folder / "metrics.json").read_text())["domains"][:1]
        _change(folder, name=name, domains=one_domain)
        pq.write_table(table, folder / "ranks.parquet")
    *_, differences = comparison(folders)
    (row,) = ([str(cell) for cell in column.cells] for column in [differences.columns[1]])
    mean = 100 * (1 - float(np.isin(ranks["rank"], range(1, 11)).mean()))
    assert [str(cell) for cell in differences.columns[0].cells] == ["perfect - as it is"]
    assert row[0].startswith(f"{mean:.1f} [")


def test_runs_of_one_name_are_called_by_their_folders(folders: tuple[Path, Path]) -> None:
    table = comparison(folders)[0]
    assert [str(cell) for cell in table.columns[0].cells][-2:] == [str(folder) for folder in folders]


def test_only_users_of_one_domain_are_paired(folders: tuple[Path, Path], small_run: Path) -> None:
    """A run on two domains compares with runs on either, but their users are not the same."""
    ranks = pq.read_table(small_run / "runs" / "small" / "ranks-bazaar.parquet")
    whole = json.loads((folders[1] / "metrics.json").read_text())
    _change(folders[1], domains=whole["domains"][1:])
    for folder in folders:
        pq.write_table(ranks, folder / "ranks.parquet")
    assert len(comparison(folders)) == 2  # a table for each domain, and no differences


def test_other_users_or_rules_are_refused(folders: tuple[Path, Path]) -> None:
    whole = json.loads((folders[1] / "metrics.json").read_text())
    others = [{**domain, "fingerprint": "another"} for domain in whole["domains"]]
    elsewhere = [{**domain, "domain": f"other-{domain['domain']}"} for domain in whole["domains"]]
    for change in ({"domains": others}, {"domains": elsewhere}, {"seen": "include"}):
        _change(folders[1], **{**whole, **change})
        with pytest.raises(DataError, match="only figures on the same users and rules compare"):
            comparison(folders)


def test_a_run_on_one_of_the_domains_is_compared_there(folders: tuple[Path, Path]) -> None:
    whole = json.loads((folders[1] / "metrics.json").read_text())
    _change(folders[1], domains=whole["domains"][1:])
    assert [table.row_count for table in comparison(folders)] == [5, 6]


def test_figures_that_were_tampered_with_are_bad_data(folders: tuple[Path, Path]) -> None:
    _change(folders[1], surprise=1)
    with pytest.raises(DataError, match="surprise: unknown key"):
        comparison(folders)


def test_the_card_tells_origin_data_figures_and_licence_and_the_checkpoint_stays_whole(
    small_run: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(small_run / "runs" / "small" / "checkpoint", tmp_path / "checkpoint"))
    outcome = read_outcome(small_run / "runs" / "small")
    write_card(folder, outcome, "apache-2.0", "small")
    card = (folder / "README.md").read_text(encoding="utf-8")
    for words in ("license: apache-2.0", "pretrained on bazaar, gallery", "item-kNN", "nicl"):
        assert words in card
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.verify() == []
    assert checkpoint.metrics == outcome.model_dump(mode="json")
