"""Imports on the command line: options reach the import, kinds are found, and each fault has its exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Pmmrec

from pmmrec.data.domain import Domain


@pytest.fixture
def foreign(tmp_path: Path) -> list[object]:
    """The options that name two tables with names and dialects of their own."""
    (tmp_path / "goods.csv").write_bytes("\ufeffsku;title;brand\r\n01;R\u00e9d;Acme\r\n02;Blue;\r\n".encode())
    rows = ["who\tsku\twhen\tstars", "u\t01\t02/01/2020\t5", "u\t02\t01/02/2020\t4", "v\t02\t01/02/2020\t1"]
    (tmp_path / "log.tsv").write_text("\n".join(rows))
    return ["--items", tmp_path / "goods.csv", "--interactions", tmp_path / "log.tsv", "--name", "x", "--out", "domain"]


def test_a_foreign_pair_of_tables_is_imported_by_one_command(home: Path, foreign: list, pmmrec: Pmmrec) -> None:
    refused = pmmrec("data", "import", "table", *foreign)
    assert refused.code == 3
    assert "--map item_id=sku --map text=title" in refused.output
    named = ["item_id=sku", "user_id=who", "timestamp=when", "rating=stars", "text={title} by {brand}"]
    options = [word for one in named for word in ("--map", one)]
    options += ["--time-format", "%d/%m/%Y", "--min-rating", 4, "--min-user", 1, "--min-item", 1, "--max-rejects", "1%"]
    result = pmmrec("data", "import", "table", *foreign, *options)
    assert result.code == 0, result.output
    assert "interactions: 3 read = 2 kept + 0 rejected + 1 filtered" in result.output
    assert "items: values are separated by ';'" in result.output
    domain = Domain.open(home / "domain")
    assert domain.texts(domain.sequence(0)) == ["R\u00e9d by Acme", "Blue"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--map", "item_id"], "--map item_id: write NAME=VALUE"),
        (["--map", "text=a", "--map", "text=b"], "--map text=b: text is given twice"),
        (["--max-rejects", "few"], "--max-rejects few: not a share"),
        (["--encoding", "klingon"], "no encoding of texts is called 'klingon'"),
        (["--k-core", 3, "--min-user", 2], "k_core, or min_user and min_item"),
    ],
)
def test_options_that_cannot_be_meant_end_with_2(
    home: Path, foreign: list, pmmrec: Pmmrec, words: list, told: str
) -> None:
    before = sorted(home.iterdir())
    result = pmmrec("data", "import", "table", *foreign, *words)
    assert (result.code, sorted(home.iterdir())) == (2, before)
    assert told in result.output


@pytest.mark.parametrize("kind", ["auto", "movielens"])
def test_a_public_data_set_is_imported_by_its_folder(home: Path, tmp_path: Path, pmmrec: Pmmrec, kind: str) -> None:
    (tmp_path / "ml").mkdir()
    (tmp_path / "ml" / "ratings.csv").write_text("userId,movieId,rating,timestamp\n7,1,5,30\n7,2,3,20\n")
    (tmp_path / "ml" / "movies.csv").write_text("movieId,title,genres\n1,A,Drama\n2,B,War\n")
    words = ("--name", "ml", "--out", "domain", "--k-core", "none")
    result = pmmrec("data", "import", kind, tmp_path / "ml", *words)
    assert result.code == 0, result.output
    assert "kind: movielens, recognised by ratings.csv, movies.csv" in result.output
    assert Domain.open(home / "domain").num_interactions == 2


def test_kinds_that_are_not_there_are_told(home: Path, tmp_path: Path, pmmrec: Pmmrec) -> None:
    words = (tmp_path, "--name", "x", "--out", "x")
    unknown = pmmrec("data", "import", "movielen", *words)
    assert (unknown.code, "did you mean 'movielens'" in unknown.output) == (2, True)
    path = pmmrec("data", "import", tmp_path, "--name", "x", "--out", "x")
    told = " ".join(path.output.replace("\u2502", "").split())  # without the frame
    assert (path.code, "is a folder, not a kind of data set; write auto" in told) == (2, True)
    empty = pmmrec("data", "import", "auto", *words)
    assert (empty.code, "see `pmmrec data kinds`" in empty.output) == (3, True)
    setting = pmmrec("data", "import", "movielens", *words, "--set", "release=1m")
    assert (setting.code, "release" in setting.output) == (2, True)
    assert list(home.iterdir()) == []


def test_kinds_are_listed(pmmrec: Pmmrec) -> None:
    assert "u.data, u.item" in pmmrec("data", "kinds").output
    listed = json.loads(pmmrec("data", "kinds", "--json").output)["kinds"]
    assert {"ninerec": ["language=en"]}.items() <= {one["name"]: one["settings"] for one in listed}.items()
