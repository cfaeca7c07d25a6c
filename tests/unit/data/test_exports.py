"""What an export writes, the command that it prints imports again, with the same ids, order, texts and times."""

from __future__ import annotations

import csv
import shlex
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Pmmrec
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.data.exporters import content, tables
from pmmrec.data.exporters.export import ExportConfig, export_domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.data.importers.given_split import store_split
from pmmrec.data.splits import split_of, splits
from pmmrec.errors import DataError, RecipeError
from pmmrec.settings import validate

TEXTS = ['say "hi", then; go', "a &amp;lt; b", None, "=SUM(1)", "R\u00e9d \u5e3d\u5b50", "'quoted"]
BRANDS = ["Acme, Inc.", None, 'B "x"', "d|e", "one\ttwo", "line\nend"]
ITEM_IDS = ["007", "7", "A b", "\u5e3d", 'q"q', "x;y"]
USER_IDS = ["u,1", "01", "1"]
MOMENTS = {"whole": [5, 7, 7, 9], "dates": ["2020-01-01", "2020-01-01T10:00:00.5Z", "2020-02-01", "1969-01-01"]}
KINDS = ["csv", "parquet", "recbole", "mmrec"]


def made(folder: Path, times: str | None) -> Domain:
    """A domain of odd ids and texts; the user `u,1` touched an item twice."""
    folder.mkdir()
    items: dict[str, list] = {"item_id": ITEM_IDS, "text": TEXTS, "brand": BRANDS}
    log = {"user_id": ["u,1", "01", "u,1", "1"] * 3, "item_id": (ITEM_IDS + ITEM_IDS[::-1])}
    if times is not None:
        log["timestamp"] = MOMENTS[times] * 3
    (folder / "pictures").mkdir()
    for place in (0, 2, 3):
        Image.new("RGB", (32, 32), (40 * place,) * 3).save(folder / "pictures" / f"{ITEM_IDS[place]}.png")
    return Domain.from_tables(items, log, out=folder / "domain", name="odd", k_core=None, images=folder / "pictures")


def words(domain: Domain, *, breaks: bool = True) -> list[object]:
    """Everything but pictures; `breaks`: as it is, or with blanks for tabs and line ends in further columns."""
    rows = list(range(domain.num_items))
    brands = domain.attribute("brand") if "brand" in domain.attributes else domain.attribute("brand:token")
    ids = domain.item_ids.to_pylist()
    users = [
        (
            user_id,
            [ids[row] for row in domain.sequence(user)],
            None if (t := domain.times(user)) is None else t.tolist(),
        )
        for user, user_id in enumerate(domain.user_ids.to_pylist())
    ]
    shown = brands if breaks else [one and one.replace("\t", " ").replace("\n", " ") for one in brands]
    return [ids, domain.texts(rows), shown, domain.has["image"].tolist(), users]


def exported(domain: Domain, out: Path, kind: str, **settings: object) -> list[str]:
    return export_domain(validate(ExportConfig, {"domain": domain.folder, "out": out, "kind": kind, **settings}, "x"))


@pytest.mark.parametrize("times", ["whole", "dates", None])
@pytest.mark.parametrize("kind", KINDS)
def test_an_export_is_imported_as_the_same_domain(
    home: Path, pmmrec: Pmmrec, monkeypatch: pytest.MonkeyPatch, kind: str, times: str | None
) -> None:
    monkeypatch.setattr(content, "INTERACTIONS_AT_ONCE", 2)
    monkeypatch.setattr(tables, "ROWS_AT_ONCE", 2)
    domain = made(home / "source", times)
    told = pmmrec("data", "export", domain.folder, "--kind", kind, "--out", "files")
    assert told.code == 0, told.output
    command = shlex.split(told.output.splitlines()[-1].removeprefix("to import them: "))
    assert command[0] == "pmmrec"
    result = pmmrec(*command[1:])
    assert result.code == 0, result.output
    again, breaks = Domain.open(home / "DOMAIN"), kind != "recbole"
    assert words(again) == words(domain, breaks=breaks)
    assert again.name == "odd"
    if kind in ("csv", "parquet"):
        assert again.info.time_unit == domain.info.time_unit


@pytest.mark.parametrize("kind", KINDS)
def test_parts_of_a_split_are_written(home: Path, kind: str) -> None:
    domain = made(home / "source", "whole")
    rule = {"type": "ratio", "by": "time"}
    exported(domain, home / "files", kind, split=rule)
    split = split_of(splits.config(rule), domain)
    part_of = np.concatenate([split.parts(stretch) for stretch in split.stretches()]).tolist()
    if kind == "recbole":
        endings = ["train", "valid", "test"]
        counts = [len((home / "files" / f"files.{one}.inter").read_text().splitlines()) - 1 for one in endings]
        assert counts == [part_of.count(part) for part in range(3)]
    elif kind == "mmrec":
        rows = [line.split("\t") for line in (home / "files" / "files.inter").read_text().splitlines()]
        assert rows[0] == ["userID", "itemID", "rating", "timestamp", "x_label"]
        assert [int(row[4]) for row in rows[1:]] == part_of
        assert [int(row[1]) for row in rows[1:]] == domain.sequence_items.tolist()
    else:
        store_split(domain.folder, home / "files" / f"interactions.{kind}", "again")
        again = split_of(splits.config({"type": "given", "name": "again"}), domain)
        assert [again.train(user).tolist() for user in range(3)] == [split.train(user).tolist() for user in range(3)]


def test_mmrec_gets_vectors_in_item_order(home: Path) -> None:
    domain = made(home / "source", None)
    vectors = np.arange(12, dtype=np.float32).reshape(6, 2)
    vectors[4] = np.nan
    store_vectors(domain, vectors, "text_feat", "a model")
    store_vectors(Domain.open(domain.folder), np.ones((6, 2, 3), np.float32), "layers", "a model")
    lines = exported(domain, home / "files", "mmrec")
    found = np.load(home / "files" / "text_feat.npy")
    assert np.array_equal(found, np.nan_to_num(vectors))
    assert "feature text_feat: 1 items without a vector have zeros" in lines
    assert not (home / "files" / "layers_feat.npy").exists()


def test_pictures_are_files_named_by_item_or_bytes_in_parquet(home: Path) -> None:
    domain = made(home / "source", None)
    exported(domain, home / "files", "csv")
    names = sorted(path.name for path in (home / "files" / "images").iterdir())
    assert names == ["007.jpg", "A b.jpg", "\u5e3d.jpg"]
    exported(domain, home / "tables", "parquet")
    assert pq.read_table(home / "tables" / "items.parquet")["image"].to_pylist() == domain.jpegs(range(6))
    exported(domain, home / "bare", "csv", images=False)
    assert not (home / "bare" / "images").exists()


def test_items_whose_ids_name_no_file_are_told(home: Path) -> None:
    Image.new("RGB", (32, 32)).save(home / "a.png")
    picture = (home / "a.png").read_bytes()
    ids = ["../up", "a/b", "fine", ".hidden", "x" * 300]
    items = {"item_id": ids, "text": ["t"] * 5, "image": [picture] * 5}
    domain = Domain.from_tables(items, {"user_id": ["u"] * 5, "item_id": ids}, out=home / "domain", k_core=None)
    lines = exported(domain, home / "files", "csv")
    assert any("pictures left out, of items whose ids cannot name files: 4" in line for line in lines)
    assert [path.name for path in (home / "files" / "images").iterdir()] == ["fine.jpg"]


@pytest.mark.parametrize("kind", ["recbole", "mmrec"])
def test_ids_that_a_layout_cannot_hold_are_refused_and_nothing_stays(home: Path, kind: str) -> None:
    log = {"user_id": ["u"] * 2, "item_id": ["a\tb", "c"]}
    domain = Domain.from_tables({"item_id": ["a\tb", "c"], "text": ["t", "s"]}, log, out=home / "domain", k_core=None)
    with pytest.raises(DataError, match=r"item id 'a\\tb' holds a tab or line end; export as csv"):
        exported(domain, home / "files", kind)
    assert sorted(path.name for path in home.iterdir()) == ["domain"]
    exported(domain, home / "files", "csv")
    with pytest.raises(RecipeError, match="exists already"):
        exported(domain, home / "files", "csv")


def test_a_domain_of_recbole_is_exported_as_recbole_again(home: Path) -> None:
    log = {"user_id": ["u"] * 2, "item_id": ["a", "c"]}
    items = {"item_id": ["a", "c"], "text": ["t", "s"], "brand:token": ["x", "y"], "price:float": ["1.5", "2"]}
    exported(Domain.from_tables(items, log, out=home / "domain", k_core=None), home / "files", "recbole")
    assert (home / "files" / "files.item").read_text().splitlines() == [
        "item_id:token\ttext:token_seq\tbrand:token\tprice:float",
        "a\tt\tx\t1.5",
        "c\ts\ty\t2",
    ]
    for place, name in enumerate(("brand:price:token", "brand:words", "text:float")):
        odd = Domain.from_tables({**items, name: ["1", "2"]}, log, out=home / f"odd{place}", k_core=None)
        with pytest.raises(DataError, match=f"column '{name}' of items cannot be named in a header of RecBole"):
            exported(odd, home / f"odd{place}_files", "recbole")


def test_csv_holds_texts_as_they_are(home: Path) -> None:
    domain = made(home / "source", None)
    exported(domain, home / "files", "csv")
    with (home / "files" / "items.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["item_id", "text", "brand"]
    assert [row[1] for row in rows[1:]] == [TEXTS[0], "a &amp;lt; b", "", *TEXTS[3:]]


@pytest.mark.parametrize("kind", ["csv", "mmrec"])
@pytest.mark.parametrize("escapes", [False, True])
def test_a_csv_says_which_cells_a_spreadsheet_would_compute_and_escapes_them_where_asked(
    home: Path, escapes: bool, kind: str
) -> None:
    items = {"item_id": ["=1+1", "b"], "text": ["=cmd()|' /C calc'!A0", "plain = text"], "note": ["@x", "-5"]}
    log = {"user_id": ["+u", "v"], "item_id": ["=1+1", "b"], "timestamp": [-3, 4]}
    domain = Domain.from_tables(items, log, out=home / "domain", k_core=None)
    told = exported(domain, home / "files", kind, **({"escape_formulas": True} if escapes else {}))
    assert any(line.startswith("6 cells begin as a formula does") for line in told)
    sign = "'" if escapes else ""

    def rows(name: str, separator: str = ",") -> list[list[str]]:
        with (home / "files" / name).open(encoding="utf-8", newline="") as file:
            return list(csv.reader(file, delimiter=separator))[1:]

    first = [f"{sign}=1+1", f"{sign}=cmd()|' /C calc'!A0", f"{sign}@x"]
    assert rows("items.csv") == [first, ["b", "plain = text", f"{sign}-5"]]
    if kind == "csv":
        assert rows("interactions.csv") == [[f"{sign}+u", f"{sign}=1+1", "-3"], ["v", "b", "4"]]
    else:
        assert rows("u_id_mapping.csv", "\t") == [[f"{sign}+u", "0"], ["v", "1"]]
        assert rows("i_id_mapping.csv", "\t") == [[f"{sign}=1+1", "0"], ["b", "1"]]


def test_escaped_formulas_are_refused_where_no_spreadsheet_reads_them(home: Path) -> None:
    with pytest.raises(RecipeError, match="escape_formulas has no effect on parquet"):
        validate(ExportConfig, {"domain": home, "out": home, "kind": "parquet", "escape_formulas": True}, "x")
