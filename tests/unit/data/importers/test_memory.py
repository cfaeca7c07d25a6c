"""Tables in memory become domains, and domains become tables."""

from __future__ import annotations

import datetime
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.errors import DataError, RecipeError

ITEMS = {"item_id": ["07", "b", "c"], "text": ["red", None, "hat"], "price": ["1.50", None, "2"]}
LOG = {"user_id": ["u", "v", "u"], "item_id": ["07", "c", "c"], "timestamp": [30, 10, 20]}


def of_pandas(columns: dict[str, list]) -> Any:
    frame = pytest.importorskip("pandas").DataFrame(columns)
    return frame.set_index(np.arange(len(frame)) * 7 + 3)  # an index that is no column


def of_polars(columns: dict[str, list]) -> Any:
    return pytest.importorskip("polars").DataFrame(columns)


def of_duckdb(columns: dict[str, list]) -> Any:
    table = pa.table(columns)
    return duckdb.connect().from_arrow(table)


def of_categories(columns: dict) -> pa.Table:
    """As polars gives its categories."""
    kept = {name: pa.array(values) for name, values in columns.items()}
    views = {name: values.cast(pa.string_view()) for name, values in kept.items() if values.type == pa.string()}
    return pa.table(kept | {name: values.dictionary_encode() for name, values in views.items()})


@pytest.mark.parametrize("make", [dict, pa.table, of_pandas, of_polars, of_duckdb, of_categories])
def test_tables_of_any_library_make_the_same_domain(tmp_path: Path, make: Callable, sequences: Callable) -> None:
    items = {**ITEMS, "text": ["red", "", "hat"]}
    domain = Domain.from_tables(make(items), make(LOG), out=tmp_path / "shop", k_core=None)
    assert (domain.name, domain.item_ids.to_pylist()) == ("shop", ["07", "c"])
    assert sequences(domain) == {"u": ["c", "07"], "v": ["c"]}
    assert domain.attribute("price") == ["1.50", "2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shop"]


def test_a_path_and_a_table_go_together(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("sku;title\n07;red\n")
    columns = {"items.item_id": "sku", "text": "title"}
    path = tmp_path / "items.csv"
    domain = Domain.from_tables(path, LOG, out=tmp_path / "shop", columns=columns, k_core=None, name="x")
    assert (domain.name, domain.num_interactions) == ("x", 1)


def test_pictures_come_from_a_column_of_bytes(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, format="PNG")
    items = pa.table({"item_id": ["07", "c"], "text": ["x", "y"], "image": [picture.getvalue(), None]})
    domain = Domain.from_tables(items, LOG, out=tmp_path / "shop", k_core=None)
    assert domain.info.summary.kept["images"] == 1


def test_dates_of_pandas_keep_their_order(tmp_path: Path, sequences: Callable) -> None:
    times = [datetime.datetime(2020, 1, day) for day in (3, 1, 2)]
    domain = Domain.from_tables(ITEMS, of_pandas({**LOG, "timestamp": times}), out=tmp_path / "shop", k_core=None)
    assert sequences(domain)["u"] == ["c", "07"]


def test_a_domain_as_tables_is_the_same_domain_again(tmp_path: Path) -> None:
    domain = Domain.from_tables(ITEMS, LOG, out=tmp_path / "shop", k_core=None)
    items, log = domain.to_arrow()
    assert items.to_pylist()[0] == {"item_id": "07", "text": "red", "price": "1.50"}
    assert log.to_pylist() == [
        {"user_id": "u", "item_id": "c", "timestamp": 20},
        {"user_id": "u", "item_id": "07", "timestamp": 30},
        {"user_id": "v", "item_id": "c", "timestamp": 10},
    ]
    again = Domain.from_tables(items, log, out=tmp_path / "again", k_core=None)
    assert again.fingerprint == domain.fingerprint
    frames = domain.to_pandas() if pytest.importorskip("pandas") else ()
    framed = Domain.from_tables(*frames, out=tmp_path / "framed", k_core=None)
    assert framed.fingerprint == domain.fingerprint


@pytest.mark.parametrize(
    ("items", "settings", "kind", "reason"),
    [
        ([1, 2], {}, DataError, "items: list is no table; give a pandas or polars DataFrame"),
        ({"item_id": ["a"], "text": []}, {}, DataError, "items: columns do not make a table"),
        ({"item_id": [1.5], "text": ["x"]}, {}, DataError, "'item_id' is DOUBLE; ids are text or whole numbers"),
        (ITEMS, {"k_cor": 3}, RecipeError, "k_core"),
    ],
)
def test_what_is_no_table_is_refused(
    tmp_path: Path, items: Any, settings: dict, kind: type[Exception], reason: str
) -> None:
    with pytest.raises(kind, match=reason) as told:
        Domain.from_tables(items, LOG, out=tmp_path / "shop", **{"k_core": None, **settings})
    assert list(tmp_path.iterdir()) == []
    assert ".parquet" not in str(told.value)


def doubled() -> pa.Table:
    return pa.Table.from_arrays([pa.array(["07"])] * 3, ["item_id", "text", "text"])


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (doubled, "items: column 'text' occurs twice"),
        (
            lambda: pytest.importorskip("pandas").DataFrame([["a", "b"]], columns=["text", "text"]),
            "items: cannot be read",
        ),
        (lambda: duckdb.sql("SELECT CAST('x' AS INT) AS item_id, 'a' AS text"), "items: cannot be read as a table"),
        (lambda: {"item_id": "07", "text": "red"}, "items: column 'item_id' is a text, not a list of values"),
    ],
)
def test_tables_that_cannot_be_read_are_refused_in_one_line(tmp_path: Path, make: Callable, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        Domain.from_tables(make(), LOG, out=tmp_path / "shop")
    assert not (tmp_path / "shop").exists()


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    page = (Path(__file__).parents[4] / "docs" / "your_data.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], found)  # noqa: S102  our own page
    assert found["interactions"]["item_id"].tolist() == ["01", "02", "02"]


def test_columns_that_are_missing_are_told_as_the_setting_that_names_them(tmp_path: Path) -> None:
    items, log = {"sku": ["1"], "the name": ["x"]}, {"visitor": ["u"], "sku": ["1"]}
    told = r"; or give columns=\{'item_id': 'sku', 'text': 'the name', 'user_id': 'visitor'\}$"
    with pytest.raises(DataError, match=told):
        Domain.from_tables(items, log, out=tmp_path / "domain")
