"""What people have on disk is read, and what was found is said."""

from __future__ import annotations

import bz2
import datetime
import gzip
import hashlib
import json
import sqlite3
import zipfile
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import feather
from pydantic import ValidationError

from pmmrec.data.importers import database as database_module
from pmmrec.data.importers import records, unpacking
from pmmrec.data.importers.text_format import TextFormat
from pmmrec.errors import DataError, MachineError, RecipeError

ROWS = np.arange(3)
TEXTS = ["red shirt", "blue shirt", "hat"]
ITEMS = [{"item_id": one, "text": text} for one, text in zip("abc", TEXTS, strict=True)]
CSV = "item_id,text\na,red shirt\nb,blue shirt\nc,hat\n"


def compressed(suffix: str, data: bytes) -> bytes:
    if suffix == ".gz":
        middle = len(data) // 2
        return gzip.compress(data[:middle]) + gzip.compress(data[middle:])  # an archive may have several members
    if suffix == ".bz2":
        return bz2.compress(data)
    return pa.compress(data, codec="zstd", asbytes=True)


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_compressed_files_are_read_and_recorded_as_they_are(shop, suffix: str, kind: str) -> None:
    content = CSV if kind == "csv" else "".join(json.dumps(row) + "\n" for row in ITEMS)
    items = shop.write(f"items.{kind}{suffix}", compressed(suffix, content.encode()))
    domain = shop.run(items=items)
    assert domain.texts(ROWS) == TEXTS
    assert domain.info.sources["items"].sha256 == hashlib.sha256(items.read_bytes()).hexdigest()
    assert domain.info.sources["items"].file_name == items.name


def test_half_an_archive_is_refused(shop) -> None:
    whole = gzip.compress(b"item_id,text\n" + b"".join(b"%d,text %d\n" % (k, 7 * k) for k in range(5000)))
    with pytest.raises(DataError, match=r"items\.csv\.gz: cannot be read: Truncated"):
        shop.run(items=shop.write("items.csv.gz", whole[: len(whole) // 2]))
    assert not shop.out.exists()


@pytest.mark.parametrize("place", [12, 40, -6])
def test_an_archive_with_a_wrong_byte_is_refused(shop, place: int) -> None:
    whole = bytearray(gzip.compress("".join(f"{k},text {k * k}\n" for k in range(500)).encode()))
    whole[place] ^= 0xFF
    with pytest.raises(DataError, match=r"items\.csv\.gz: cannot be read: "):
        shop.run(items=shop.write("items.csv.gz", bytes(whole)))
    assert not shop.out.exists()


def test_an_archive_that_grows_without_end_is_refused(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "GROWTH_FROM_BYTES", 1000)
    items = shop.write("items.csv.gz", gzip.compress(b"item_id,text\na," + b"x" * 2_000_000))
    with pytest.raises(DataError, match=r"grows to more than [0-9,]+ bytes; unpack it yourself"):
        shop.run(items=items)


@pytest.mark.parametrize(
    ("content", "note"),
    [
        ("\ufeffitem_id;text\r\na;red shirt\r\nb;blue shirt\r\nc;hat\r\n".encode(), "values are separated by ';'"),
        (CSV.replace(",", "\t").encode("utf-16"), "read as utf-16"),
        (b"\xfe\xff" + CSV.encode("utf-16-be"), "read as utf-16"),
    ],
)
def test_files_of_excel_are_read_and_said(shop, content: bytes, note: str) -> None:
    shop.items.write_bytes(content)
    domain = shop.run()
    assert domain.texts(ROWS) == TEXTS
    assert f"items: {note}" in domain.info.summary.notes


def test_an_encoding_that_is_named_is_used(shop) -> None:
    shop.items.write_bytes(CSV.replace("red", "r\u00e9d").encode("cp1252"))
    with pytest.raises(DataError, match=r"line 2: not UTF-8 text; .*--encoding cp1252"):
        shop.run()
    assert shop.run(items_format=TextFormat(encoding="cp1252")).texts(ROWS[:1]) == ["r\u00e9d shirt"]


def test_a_text_that_lacks_the_named_encoding_is_refused_with_its_line(shop) -> None:
    with pytest.raises(DataError, match="line 3: not ASCII text; name another"):
        shop.run(items=shop.write("i.csv", CSV.replace("blue", "bl\u00fce")), items_format=TextFormat(encoding="ascii"))


@pytest.mark.parametrize(
    ("encoding", "given", "reason"),
    [
        ("utf-16-le", {}, "has zero bytes.*--encoding utf-16-le"),
        ("utf-32", {}, "has zero bytes"),
        ("utf-16-le", {"encoding": "utf-16"}, "not UTF-16 text.*name utf-16-le"),
        ("utf-8", {"encoding": "punycode"}, "not PUNYCODE text"),
    ],
)
def test_texts_of_other_encodings_are_refused_with_the_option(shop, encoding: str, given: dict, reason: str) -> None:
    items = shop.write("items.csv", CSV.encode(encoding))
    with pytest.raises(DataError, match=rf"items\.csv: line 1: {reason}"):
        shop.run(items=items, items_format=TextFormat(**given))


def test_a_tab_may_be_written_as_in_a_shell(shop) -> None:
    items = shop.write("items.csv", CSV.replace(",", "\t").encode())
    assert shop.run(items=items, items_format=TextFormat(delimiter=r"\t")).texts(ROWS) == TEXTS


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"encoding": "klingon"}, "no encoding of texts is called 'klingon'"),
        ({"encoding": "hex"}, "no encoding of texts is called 'hex'"),
        ({"delimiter": '"'}, "separates no values"),
    ],
)
def test_settings_of_a_text_that_cannot_be_are_refused(settings: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TextFormat(**settings)


def test_settings_of_a_text_have_no_effect_on_other_files(shop) -> None:
    items = shop.folder / "items.arrow"
    feather.write_feather(pa.table({"item_id": ["a"], "text": ["x"]}), items)
    with pytest.raises(RecipeError, match=r"items\.arrow: --encoding has no effect"):
        shop.run(items=items, items_format=TextFormat(encoding="latin-1"))


def test_a_delimiter_of_two_signs_and_columns_without_a_header_are_read(shop) -> None:
    items = shop.write("movies.txt", 'a::He said "red"::x\nb::blue::y\n\nc::#hat::z\n')
    layout = TextFormat(delimiter="::", quote="none", columns=("item_id", "text", "genre"))
    domain = shop.run(items=items, items_format=layout)
    assert domain.texts(ROWS) == ['He said "red"', "blue", "#hat"]
    assert domain.attribute("genre") == ["x", "y", "z"]


def test_quote_marks_are_text_where_that_is_said(shop) -> None:
    shop.items.write_text('item_id,text\na,"red\nb,12" blue\nc,"hat"\n')
    domain = shop.run(items_format=TextFormat(quote="none"))
    assert domain.texts(ROWS) == ['"red', '12" blue', '"hat"']


@pytest.mark.parametrize("form", ["lines", "list"])
def test_json_keeps_ids_as_they_are_written(shop, form: str, sequences) -> None:
    log = [{"user_id": 7, "item_id": "0007", "more": {"x": [1]}}, {"user_id": 12345678901234567890123, "item_id": "#a"}]
    items = [{"item_id": "0007", "text": "red"}, {"item_id": "#a", "text": "2020-01-01", "tags": ["x", "y"]}]
    paths = {}
    for role, rows in (("items", items), ("interactions", log)):
        text = json.dumps(rows) if form == "list" else "\n".join(map(json.dumps, rows))
        paths[role] = shop.write(f"{role}.json", text)
    domain = shop.run(**paths)
    assert sequences(domain) == {"7": ["0007"], "12345678901234567890123": ["#a"]}
    assert domain.texts(np.arange(2)) == ["red", "2020-01-01"]


def test_broken_json_is_refused_with_its_place(shop) -> None:
    items = shop.write("items.jsonl", '{"item_id": "a", "text": "x"}\n{"item_id": "b", "te\n')
    with pytest.raises(DataError, match=r"items\.jsonl: cannot be read as json: byte \d+ in line 3"):
        shop.run(items=items)


def test_lines_of_python_literals_are_values_and_never_run(shop) -> None:
    lines = ["{'item_id': u'0007', 'text': 'it\\'s red', 'price': 1.5}", "{'item_id': '8', 'text': \"blue\"}", ""]
    shop.interactions.write_text("user_id,item_id\nu,0007\nu,8\n")
    domain = shop.run(items=shop.write("items.json", "\n".join(lines)))
    assert domain.item_ids.to_pylist() == ["0007", "8"]
    assert domain.texts(np.arange(2)) == ["it's red", "blue"]
    assert "items: its lines are Python literals" in domain.info.summary.notes
    canary = shop.folder / "canary"
    for number, bad in enumerate((f"open({str(canary)!r}, 'w')", "['a']", "{'item_id': ")):
        path = shop.write(f"bad{number}.json", f"{lines[0]}\n{bad}\n")
        with pytest.raises(DataError, match=r"line 2: "):
            shop.run(items=path, out=shop.folder / "bad")
    assert not canary.exists()


def test_columns_of_literals_that_come_late_are_told(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "ROWS_AT_ONCE", 2)
    lines = [{"item_id": "a", "text": "x"}, {"item_id": "b", "text": "y"}, {"item_id": "c", "text": "z", "late": 1}]
    domain = shop.run(items=shop.write("items.json", "\n".join(map(repr, lines))))
    assert domain.attributes == ()
    assert "items: columns that first occur after row 2 are left out: late" in domain.info.summary.notes


@pytest.mark.parametrize("form", ["file", "stream"])
def test_arrow_files_and_streams_are_read(shop, form: str) -> None:
    table, path = pa.Table.from_pylist(ITEMS), shop.folder / "items.arrow"
    with pa.OSFile(str(path), "wb") as sink:
        make = pa.ipc.new_file if form == "file" else pa.ipc.new_stream
        with make(sink, table.schema) as writer:
            writer.write_table(table)
    assert shop.run(items=path).texts(ROWS) == TEXTS
    with pytest.raises(DataError, match="cannot be read as an Arrow file"):
        shop.run(items=shop.write("broken.feather", path.read_bytes()[:60]), out=shop.folder / "other")


def workbook(path: Path) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    rows = [
        ["item_id", "text", None, "since"],
        [7, "red", 1, datetime.datetime(2020, 1, 2)],
        ["0008", "blue", None, 2.5],
    ]
    for row in rows:
        book.active.append(row)
    book.active.title = "shop"
    book.create_sheet("notes")
    book.save(path)
    return path


def test_the_first_sheet_of_a_workbook_is_read(shop) -> None:
    shop.interactions.write_text("user_id,item_id\nu,7\nu,0008\n")
    domain = shop.run(items=workbook(shop.folder / "items.xlsx"))
    assert domain.item_ids.to_pylist() == ["7", "0008"]
    assert domain.attribute("since") == ["2020-01-02T00:00:00", "2.5"]
    assert "items: the first sheet, 'shop', is read, not 'notes'" in domain.info.summary.notes


def test_rows_of_a_workbook_may_end_before_its_columns(shop) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook(write_only=True)  # which does not say how wide a sheet is
    sheet = book.create_sheet()
    for row in (["item_id", "text", "brand"], ["a", "red shirt"], ["b", "blue shirt", "Acme", "more"], ["c", "hat"]):
        sheet.append(row)
    book.save(shop.folder / "items.xlsx")
    assert shop.run(items=shop.folder / "items.xlsx").texts(ROWS) == TEXTS


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([], "its first line is empty"),
        ([[], ["item_id", "text"], ["a", "red shirt"]], "its first line is empty"),
        ([["item_id", "text"], ["a", 5]], "sheet 'Sheet' cannot be read"),
    ],
)
def test_a_workbook_that_cannot_be_read_is_refused(shop, rows: list[list], reason: str) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book, path = openpyxl.Workbook(), shop.folder / "items.xlsx"
    for row in rows:
        book.active.append(row)
    book.save(path)
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name).replace(b"<v>5</v>", b"<v>five</v>") for name in file.namelist()}
    with zipfile.ZipFile(path, "w") as file:
        for name, content in parts.items():
            file.writestr(name, content)
    with pytest.raises(DataError, match=rf"items\.xlsx: {reason}"):
        shop.run(items=path)


def test_a_workbook_needs_openpyxl_and_says_so(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openpyxl", None)
    with pytest.raises(MachineError, match="openpyxl is not installed; pip install"):
        shop.run(items=shop.write("items.xlsx", b"PK"))


@pytest.mark.parametrize("scheme", ["duckdb", "sqlite"])
def test_a_query_of_a_database_gives_the_rows(shop, scheme: str) -> None:
    path = shop.folder / "shop.db"
    with duckdb.connect(str(path)) if scheme == "duckdb" else sqlite3.connect(path) as database:
        database.execute("CREATE TABLE goods (sku VARCHAR, title VARCHAR)")
        for row in ITEMS:
            database.execute("INSERT INTO goods VALUES (?, ?)", list(row.values()))
    database.close()
    query = "SELECT sku AS item_id, title || '#1' AS text FROM goods WHERE title LIKE '%shirt%' OR sku = 'c'"
    assert shop.run(items=f"{scheme}:///{path}?query={query}").texts(ROWS) == [f"{text}#1" for text in TEXTS]
    table = shop.run(
        items=f"{scheme}:///{path}?table=goods", columns={"item_id": "sku", "text": "title"}, out=shop.folder / "other"
    )
    assert table.texts(ROWS) == TEXTS
    for bad, kind, reason in (
        (f"{scheme}:///{path}?query=SELECT nothing", DataError, "the query was: SELECT nothing"),
        (f"{scheme}:///{path}?query=DROP TABLE goods", DataError, "the query was"),
        (f"{scheme}:///{path}.no?table=goods", DataError, "no such file"),
        (f"{scheme}:///{path}", RecipeError, "not the address of a database"),
        ("mysql:///shop?table=goods", RecipeError, "not the address of a database"),
    ):
        with pytest.raises(kind, match=reason):
            shop.run(items=bad, out=shop.folder / "bad")


@pytest.mark.parametrize(
    ("scheme", "statement"),
    [
        ("duckdb", "COPY (SELECT 1) TO '{other}'"),
        ("duckdb", "SELECT * FROM read_csv('{items}')"),
        ("duckdb", "ATTACH '{other}'"),
        ("duckdb", "SET threads = 1"),
        ("duckdb", "-- nothing"),
        ("duckdb", "SELECT sku AS item_id, title AS text, INTERVAL 1 DAY AS span FROM goods"),
        ("sqlite", "ATTACH '{other}' AS other"),
        ("sqlite", "VACUUM INTO '{other}'"),
        ("sqlite", "PRAGMA user_version = 3"),
        ("sqlite", "BEGIN"),
        ("sqlite", "-- nothing"),
    ],
)
def test_a_query_reads_its_database_alone_and_writes_nothing(shop, scheme: str, statement: str) -> None:
    path, other = shop.folder / "shop.db", shop.folder / "other.db"
    with duckdb.connect(str(path)) if scheme == "duckdb" else sqlite3.connect(path) as database:
        database.execute("CREATE TABLE goods (sku VARCHAR, title VARCHAR)")
        database.execute("INSERT INTO goods VALUES ('a', 'red shirt')")
    database.close()
    for _ in range(2):  # a first refusal leaves the database free
        with pytest.raises(DataError, match=r"shop\.db: .*; the query was: "):
            shop.run(items=f"{scheme}:///{path}?query={statement.format(other=other, items=shop.items)}")
    assert not other.exists()
    assert not shop.out.exists()


@pytest.mark.parametrize(
    ("content", "how"),
    [
        ("user_id\titem_ids\nv\tb a b\nu\tc\nw\t\n", "lists with blanks between ids"),
        ("user_id;item_ids\nv;b,a,b\nu;c\nw;\n", "lists with commas between ids"),
        ("user_id\titem_ids\nv\t['b', 'a', 'b']\nu\t['c']\nw\t[]\n", "lists in brackets"),
        ('user_id\titem_ids\nv\t["b","a","b"]\nu\t["c"]\nw\t[]\n', "lists in brackets"),
    ],
)
def test_lists_of_items_become_interactions_in_order(shop, sequences, rejected, content: str, how: str) -> None:
    shop.interactions.write_text(content)
    if "\t" in content:
        shop.interactions = shop.interactions.rename(shop.folder / "log.tsv")
    domain = shop.run()
    assert sequences(domain) == {"v": ["b", "a", "b"], "u": ["c"]}
    assert (
        f"interactions: 3 {how} of items give 5 rows, which rejected rows are numbered by" in domain.info.summary.notes
    )
    assert ("interaction", "w/", 5, "empty item id") in rejected(domain)
    assert domain.info.summary.num_interactions_read == 5


def test_a_list_column_of_parquet_is_unfolded(shop, sequences) -> None:
    path = shop.folder / "log.parquet"
    pa.parquet.write_table(pa.table({"user_id": [1, 2], "item_ids": [["b", "a"], ["c"]], "timestamp": [5, 6]}), path)
    domain = shop.run(interactions=path)
    assert sequences(domain) == {"1": ["b", "a"], "2": ["c"]}
    assert domain.times(0).tolist() == [5, 5]


POSTGRES = "postgres://ann:secret@db.example:5432/shop?"


def test_postgres_is_refused_in_one_line_without_its_extension(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database_module, "LOAD_POSTGRES", "LOAD no_such_extension")
    with pytest.raises(MachineError, match=r"shop: DuckDB's extension postgres is not installed here; install") as told:
        shop.run(items=f"{POSTGRES}table=goods")
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("address", ["postgres://ann:secret@host?table=x", f"{POSTGRES}where=1", f"{POSTGRES}query="])
def test_an_address_of_postgres_without_database_or_query_is_refused(shop, address: str) -> None:
    with pytest.raises(RecipeError, match="not the address of a database that is read") as told:
        shop.run(items=address)
    assert "secret" not in str(told.value)


def test_a_table_of_postgres_is_read_as_one_of_duckdb(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    path = shop.folder / "shop.db"
    with duckdb.connect(str(path)) as made:
        made.execute("CREATE TABLE goods AS SELECT 'a' AS item_id, 'red' AS text")
    monkeypatch.setattr(database_module, "LOAD_POSTGRES", "SELECT 1")
    monkeypatch.setattr(database_module, "ATTACH_POSTGRES", f"ATTACH '{path}' AS source (READ_ONLY) -- {{}}")
    assert shop.run(items=f"{POSTGRES}table=goods").item_ids.to_pylist() == ["a"]
    with pytest.raises(DataError, match="a query may only read its own database"):
        shop.run(items=f"{POSTGRES}query=FROM '{shop.items}'", out=shop.folder / "other")
    monkeypatch.setattr(database_module, "ATTACH_POSTGRES", "ATTACH '/no/such/folder/{}' AS source (READ_ONLY)")
    with pytest.raises(DataError, match=r"shop: cannot be reached: ") as told:
        shop.run(items=f"{POSTGRES}table=goods", out=shop.folder / "other")
    assert "secret" not in str(told.value)


def test_the_mark_of_utf8_wins_over_an_encoding_that_is_given_for_both_files(shop) -> None:
    shop.items.write_bytes("item_id,text\na,Caf\u00e9\nb,y\nc,z\n".encode("cp1252"))
    shop.interactions.write_bytes("\ufeffuser_id,item_id,timestamp\n\u00fc,a,1\n".encode())
    formats = {"items_format": {"encoding": "cp1252"}, "interactions_format": {"encoding": "cp1252"}}
    domain = shop.run(**formats)
    assert domain.texts(np.array([0])) == ["Caf\u00e9"]
    assert domain.user_ids.to_pylist() == ["\u00fc"]
    notes = domain.info.summary.notes
    assert "items: read as cp1252" in notes
    assert "interactions: begins with the mark of UTF-8, so it is not read as cp1252" in notes
