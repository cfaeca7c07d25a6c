from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.errors import DataError

ROWS = np.arange(3)


def assert_refused(shop, message: str, **settings: object) -> None:
    """The import fails with one line, and nothing stays behind."""
    before = sorted(shop.folder.iterdir())
    with pytest.raises(DataError, match=message) as caught:
        shop.run(**settings)
    assert "\n" not in str(caught.value)
    assert sorted(shop.folder.iterdir()) == before


@pytest.mark.parametrize(
    "content",
    [
        "item_id,text\r\na,red\r\nb,blue\r\nc,hat\r\n",
        "\ufeffitem_id,text\na,red\nb,blue\nc,hat\n",
        "item_id,text\na,red\n\nb,blue\nc,hat",
        '"item_id","text"\n"a","red"\n"b","blue"\n"c","hat"\n',
        "text,item_id\nred,a\nblue,b\nhat,c\n",
    ],
)
def test_line_ends_marks_and_quotes_make_no_difference(shop, content: str) -> None:
    shop.items.write_bytes(content.encode())
    domain = shop.run()
    assert domain.item_ids.to_pylist() == ["a", "b", "c"]
    assert domain.texts(ROWS) == ["red", "blue", "hat"]


@pytest.mark.parametrize(
    ("begin", "kind"),
    [
        (b"\x1f\x8b\x08", r"is a gzip file; end its name in \.gz"),
        (b"PK\x03\x04", r"is a zip file or a workbook \(xlsx\)"),
        (b"PAR1", r"is a parquet file; end its name in \.parquet"),
        (b"ARROW1", r"is an Arrow file; end its name in \.arrow"),
    ],
)
def test_a_file_of_another_kind_under_the_name_of_a_text_is_named(shop, begin: bytes, kind: str) -> None:
    shop.items.write_bytes(begin + b"\x00\xff\n")
    assert_refused(shop, rf"items\.csv: {kind}")


def test_a_column_without_a_name_is_not_mentioned(shop) -> None:
    shop.interactions.write_text("user_id,item_id,timestamp,\nu,a,1,\nu,b,2,\n")
    assert not any("not used" in note for note in shop.run().info.summary.notes)


def test_quoted_separators_quotes_and_line_ends_belong_to_the_text(shop) -> None:
    shop.items.write_bytes(b'item_id,text\r\na,"red,\r\n""new"" shirt"\r\nb,12" vinyl\r\nc,#hat\r\n')
    assert shop.run().texts(ROWS) == ['red, "new" shirt', '12" vinyl', "#hat"]


def test_the_words_null_and_nan_are_words(shop) -> None:
    shop.items.write_text("item_id,text\na,NULL\nb,nan\nc,NA\n")
    assert shop.run().texts(ROWS) == ["NULL", "nan", "NA"]


def test_a_missing_column_is_named_with_the_nearest(shop) -> None:
    shop.items.write_text("Item_ID,text\na,x\n")
    assert_refused(shop, r"items\.csv: no column 'item_id', found 'Item_ID', 'text'; is it 'Item_ID'\? Rename it")


def test_a_separator_that_is_not_found_shows_in_the_columns_found(shop) -> None:
    shop.interactions.write_text("user_id#item_id\nu#a\n")
    assert_refused(shop, r"no columns 'user_id', 'item_id', found 'user_id#item_id'")


@pytest.mark.parametrize("sign", [";", "\t", "|"])
def test_another_separator_is_found_and_said(shop, sign: str) -> None:
    shop.items.write_text(f"item_id{sign}text\na{sign}red, new\nb{sign}blue\nc{sign}hat\n")
    domain = shop.run()
    assert domain.texts(ROWS) == ["red, new", "blue", "hat"]
    assert f"items: values are separated by {sign!r}" in domain.info.summary.notes


def test_a_column_that_occurs_twice_in_parquet_is_refused(shop) -> None:
    path = shop.folder / "items.parquet"
    columns = [pa.array(["a", "b"]), pa.array(["x", "y"]), pa.array(["p", "q"])]
    pq.write_table(pa.Table.from_arrays(columns, names=["item_id", "text", "text"]), path)
    assert_refused(shop, "column 'text' occurs twice", items=path)


@pytest.mark.parametrize("texts", [[b"caf\xe9"], [["x", "y"]], [{"title": "x"}], [[{"a": 1}]]])
def test_bytes_and_nested_values_are_refused_as_texts(shop, texts: list) -> None:
    path = shop.folder / "items.parquet"
    pq.write_table(pa.table({"item_id": ["a"], "text": texts}), path)
    assert_refused(shop, "column 'text' is .*; texts are strings, cast it", items=path)


def test_a_column_that_occurs_twice_is_refused(shop) -> None:
    shop.items.write_text("item_id,text,text\na,x,y\n")
    assert_refused(shop, "column 'text' occurs twice")


def test_columns_that_differ_in_case_are_two_columns(shop) -> None:
    shop.items.write_text("item_id,text,Text\na,x,y\nb,x,y\nc,x,y\n")
    assert shop.run().texts(ROWS) == ["x", "x", "x"]


def test_a_nameless_index_column_is_left_out(shop) -> None:
    shop.items.write_text(",item_id,text\n0,a,x\n1,b,x\n2,c,x\n")
    with pa.memory_map(str(shop.run().folder / "items.arrow")) as source:
        assert pa.ipc.open_file(source).schema.names == ["item_id", "text"]


def test_an_unknown_file_type_is_refused(shop) -> None:
    assert_refused(shop, r"unknown type '\.ods'; give \.csv, \.tsv, .*\.xlsx", items=shop.write("items.ods", "x"))


def test_a_missing_file_is_refused(shop) -> None:
    assert_refused(shop, r"nowhere\.csv: no such file", items=shop.folder / "nowhere.csv")


@pytest.mark.parametrize(("content", "message"), [("", "is empty"), ("\n", "first line is empty")])
def test_an_empty_file_is_refused(shop, content: str, message: str) -> None:
    assert_refused(shop, message, items=shop.write("items.csv", content))


@pytest.mark.parametrize("header", ["item_id,text", "item_id,text\n"])
def test_a_header_without_rows_is_refused(shop, header: str) -> None:
    assert_refused(shop, "names its columns but has no row", items=shop.write("items.csv", header))


def test_a_parquet_file_without_rows_is_refused(shop) -> None:
    path = shop.folder / "items.parquet"
    pq.write_table(pa.table({"item_id": pa.array([], pa.string()), "text": pa.array([], pa.string())}), path)
    assert_refused(shop, "names its columns but has no row", items=path)


@pytest.mark.parametrize("bad", [b"\xff", b"\xed\xa0\x80", b"\xc3"])
def test_text_that_is_not_utf8_is_refused_with_its_line(shop, bad: bytes) -> None:
    shop.items.write_bytes(b'item_id,text\na,"two\nlines"\nb,' + bad + b"\n")
    assert_refused(shop, r"items\.csv: line 4: not UTF-8 text; save the file as UTF-8, or name its encoding")


def test_a_character_cut_by_the_end_of_the_file_is_refused(shop) -> None:
    shop.items.write_bytes(b"item_id,text\na,x\nb,\xc3")
    assert_refused(shop, "line 3: not UTF-8")


def test_bad_text_far_into_a_file_is_found_at_its_line(shop) -> None:
    rows = [b"a%d," % k + b"x" * 100 for k in range(30_000)]
    rows[25_000] = "a25000,caf\u00e9".encode("latin-1")
    shop.items.write_bytes(b"item_id,text\n" + b"\n".join(rows))
    assert_refused(shop, "line 25002: not UTF-8")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("b,blue,extra", "line 3: Expected Number of Columns: 2 Found: 3"),
        ("b", "line 3: Expected Number of Columns: 2 Found: 1"),
        ('b,"blue', "line 3: Value with unterminated quote found"),
        ('b,"blue" sky', "line 3: Value with unterminated quote found"),
        ("b," + "blue" * 600_000, "line 3: Maximum line size of 2000000 bytes .*; cut the text, or close a quote"),
    ],
)
def test_a_row_that_breaks_the_format_is_refused_with_its_line(shop, row: str, message: str) -> None:
    shop.items.write_text(f"item_id,text\na,red\n{row}\n")
    assert_refused(shop, message)


def test_line_ends_of_two_kinds_are_refused(shop) -> None:
    shop.items.write_bytes(b'item_id,text\r\na,red\nb,"blue\r\nsky"\r\n')
    assert_refused(shop, "check quotes, and that all lines end in the same way")


@pytest.mark.parametrize("content", [b"PAR1", b"hello world, I am no parquet file", b"PAR1" + b"\0" * 40 + b"PAR1"])
def test_a_broken_parquet_file_is_refused(shop, content: bytes) -> None:
    assert_refused(shop, "cannot be read as parquet", items=shop.write("items.parquet", content))


def test_a_truncated_parquet_file_is_refused(shop) -> None:
    path = shop.folder / "items.parquet"
    pq.write_table(pa.table({"item_id": ["a", "b"], "text": ["x", "y"]}), path)
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused(shop, r"items\.parquet: ", items=path)


def test_parquet_text_that_is_not_utf8_is_refused(shop) -> None:
    offsets = pa.array([0, 1], pa.int32()).buffers()[1]
    text = pa.Array.from_buffers(pa.string(), 1, [None, offsets, pa.py_buffer(b"\xff")])
    path = shop.folder / "items.parquet"
    pq.write_table(pa.table({"item_id": ["a"], "text": text}), path)
    assert_refused(shop, r"items\.parquet: .*UTF8", items=path)


@pytest.mark.parametrize("folder", ["with space", "a*b", "[x]", "k=3", "quo'te", "h\u00e9"])
def test_paths_with_special_characters_are_read(shop, folder: str) -> None:
    items = shop.write(f"{folder}/items?.csv", "item_id,text\na,right\n")
    shop.write(f"{folder}/itemsX.csv", "item_id,text\na,wrong\n")
    domain = shop.run(items=items, out=shop.folder / folder / "domain")
    assert domain.texts(np.array([0])) == ["right"]


def test_dictionary_columns_of_parquet_are_read(shop) -> None:
    path: Path = shop.folder / "items.parquet"
    pq.write_table(pa.table({"item_id": pa.array(["a", "b"]).dictionary_encode(), "text": ["x", "y"]}), path)
    assert shop.run(items=path).item_ids.to_pylist() == ["a", "b"]
