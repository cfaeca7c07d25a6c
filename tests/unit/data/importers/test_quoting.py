"""No row of a text file is lost, split or joined silently, whatever its quoting."""

from __future__ import annotations

import csv
import io
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

from pmmrec.data.importers import quoting, source
from pmmrec.data.importers.quoting import Quoting
from pmmrec.data.importers.source import Source
from pmmrec.data.importers.user_list import read_user_ids
from pmmrec.errors import DataError

OPEN_TITLE = 'item_id{0}text\nN1{0}TV set\nN2{0}"Best of the year\nN3{0}Monitor 27"\nN4{0}Radio\n'


@pytest.fixture(scope="module")
def read() -> Iterator[Callable[[Path], tuple[list[tuple], str | None]]]:
    """The rows of a file and the note on how it was read."""
    with duckdb.connect() as connection:
        names = (f"table_{number}" for number in itertools.count())

        def rows_of(path: Path) -> tuple[list[tuple], str | None]:
            opened, name = Source(path, connection), next(names)
            opened.load(name, {column.sql: column.sql for column in opened.columns})
            rows = connection.execute(f"SELECT * EXCLUDE row FROM {name} ORDER BY row").fetchall()  # noqa: S608  ours
            return rows, "; ".join(opened.notes("items")) or None

        yield rows_of


def test_a_title_that_begins_with_a_quote_fuses_no_items_of_a_tsv(shop) -> None:
    items = shop.write("items.tsv", OPEN_TITLE.format("\t"))
    shop.interactions.write_text("user_id,item_id\nu,N1\nu,N2\nu,N3\nu,N4\n")
    domain = shop.run(items=items)
    assert domain.item_ids.to_pylist() == ["N1", "N2", "N3", "N4"]
    assert domain.texts(np.arange(4)) == ["TV set", '"Best of the year', 'Monitor 27"', "Radio"]
    note = "items: read without quoting, since a quote mark in line 3 encloses no value"
    assert note in domain.info.summary.notes
    assert domain.info.summary.rejected == {}


def test_lines_inside_a_value_of_a_csv_are_counted(shop) -> None:
    shop.items.write_text(OPEN_TITLE.format(","))
    shop.interactions.write_text("user_id,item_id\nu,N1\nu,N4\n")
    summary = shop.run().info.summary
    assert summary.num_items_read == 3
    assert summary.notes[1] == (
        "items: lines that continue a quoted value: 1, the first after line 3; if they are rows, a quote mark "
        "is not closed there"
    )


def test_interactions_are_judged_too(shop) -> None:
    log = shop.write("log.tsv", 'user_id\titem_id\n"u\ta\nv"\tb\nw\tc\n')
    domain = shop.run(interactions=log)
    assert domain.user_ids.to_pylist() == ['"u', 'v"', "w"]
    assert domain.info.summary.notes[1].startswith("interactions: read without quoting")


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('a\tb\n1\t12" vinyl\n2\tsay "hi"\n', [("1", '12" vinyl'), ("2", 'say "hi"')]),
        ('a\tb\n1\t"x\n2\ty\n', [("1", '"x'), ("2", "y")]),
        ('a\tb\n1\t"x" y\n2\t"z"\n', [("1", '"x" y'), ("2", '"z"')]),
        ('a\tb\tc\n1\t"x\ty"\n2\tz\tw\n', [("1", '"x', 'y"'), ("2", "z", "w")]),
        ('a\tb\n1\t"x\t\n2\ty"\t\n', [("1", '"x'), ("2", 'y"')]),
        ('a\n"x\ny"\n', [('"x',), ('y"',)]),
        ('a\t"b\n1\tx\n', [("1", "x")]),
        ('a\tb\r\n1\t"x\r\n\r\n2\ty"\r\n', [("1", '"x'), ("2", 'y"')]),
    ],
)
def test_quote_marks_of_a_tsv_without_quoting_are_text(read, tmp_path: Path, content: str, rows: list[tuple]) -> None:
    (tmp_path / "x.tsv").write_bytes(content.encode())
    found, note = read(tmp_path / "x.tsv")
    assert found == rows
    assert "read without quoting" in str(note)


@pytest.mark.parametrize(
    ("content", "rows"),
    [
        ('a\tb\n1\t"x"\n2\t"say ""hi"""\n', [("1", "x"), ("2", 'say "hi"')]),
        ('"a"\t"b"\n"1"\t"x\ty"\n', [("1", "x\ty")]),
        ('"a"\t"b\tc"\n1\t"x\ty"\n2\tz\n', [("1", "x\ty"), ("2", "z")]),
        ('\ufeff"a"\t"b"\r\n1\t"x"\r\n', [("1", "x")]),
        ("a\tb\n1\tx\n\n\n2\ty", [("1", "x"), ("2", "y")]),
        ("a\tb\r1\tx\r2\ty\r", [("1", "x"), ("2", "y")]),
        ("a\n\n1\n\n", [(None,), ("1",), (None,)]),
    ],
)
def test_a_tsv_that_is_quoted_by_the_rules_is_read_by_them(
    read, tmp_path: Path, content: str, rows: list[tuple]
) -> None:
    (tmp_path / "x.tsv").write_bytes(content.encode())
    assert read(tmp_path / "x.tsv") == (rows, None)


def test_descriptions_of_several_lines_in_a_quoted_tsv_are_read_and_counted(read, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('a\tb\tc\n1\t"red\nsmall\n\nnew"\tx\n2\ty\tz\n')
    rows, note = read(tmp_path / "x.tsv")
    assert rows == [("1", "red\nsmall\n\nnew", "x"), ("2", "y", "z")]
    assert str(note).startswith("items: lines that continue a quoted value: 2, the first after line 2; ")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('a\tb\n1\t"x\n2\ty\n3\tz"\n4\ta\tb"\n', "line 3 looks like a row"),
        (
            'a\tb\n1\t"x\n2\ty\tz\n3\tw\n4\tv"\n',
            "line 4 looks like a row, but a quote mark that opens in line 2 or later",
        ),
        ('a\tb\n1\t"x" y\n2\t"z\tw"\n3\t"v\nv"\n', "line 2: Value with unterminated quote"),
        ('a\tb\n1\t12" x\n2\t"z\tw"\n3\t"v\nv"\n', "4 rows are in the file, but 3 were read; .* from line 2 on"),
    ],
)
def test_a_tsv_of_which_a_row_would_be_lost_is_refused(read, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "x.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "x.tsv")


PADDED = [
    ('a,b\n1, "x y"\n2,z\n', [("1", "x y"), ("2", "z")], 1, 2),
    ('a,b\n1,"x"\n "2" ,"z"  \n3, "w, v"\n', [("1", "x"), ("2", "z"), ("3", "w, v")], 2, 3),
    ('a,b\n1, "x\ny" \n2,z\n', [("1", "x\ny"), ("2", "z")], 2, 2),
]


@pytest.mark.parametrize(("content", "rows", "num_lines", "first"), PADDED)
def test_blanks_around_a_quoted_value_of_a_csv_are_dropped_with_a_note(
    read, tmp_path: Path, content: str, rows: list[tuple], num_lines: int, first: int
) -> None:
    (tmp_path / "x.csv").write_text(content)
    found, note = read(tmp_path / "x.csv")
    assert found == rows
    assert (
        f"lines with blanks around a quoted value, which are dropped: {num_lines}, the first is line {first};" in note
    )


@pytest.mark.parametrize("value", [" x", "x ", '  "x"', '\t"x"', '"a, "', '" x "', '"a ""b"" , c"', 'x "y"'])
def test_blanks_that_belong_to_a_value_of_a_csv_are_kept_and_not_noted(read, tmp_path: Path, value: str) -> None:
    (tmp_path / "x.csv").write_text(f"a,b\n1,{value}\n")
    expected = value[1:-1].replace('""', '"') if value.startswith('"') else value
    assert read(tmp_path / "x.csv") == ([("1", expected)], None)


def test_a_quoted_value_after_a_blank_is_text_in_a_tsv(read, tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text('a\tb\n1\t "x"\n')
    found, note = read(tmp_path / "x.tsv")
    assert found == [("1", ' "x"')]
    assert "read without quoting" in str(note)


def draw_rows(draw: random.Random, letters: str) -> list[tuple[str, ...]]:
    width = draw.randint(2, 4)
    return [
        tuple("".join(draw.choices(letters, k=draw.randint(1, 5))) for _ in range(width))
        for _ in range(draw.randint(1, 6))
    ]


def read_or_refuse(read, path: Path) -> tuple[list[tuple] | None, str | None]:
    """What `read` gives; no rows and the message where the file is refused."""
    try:
        rows, note = read(path)
    except DataError as error:
        return None, str(error)
    return rows, note


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
@pytest.mark.parametrize("style", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_every_row_that_a_writer_quotes_is_read_or_its_file_refused(
    read, tmp_path: Path, suffix: str, style: int
) -> None:
    separator, draw, path = {".csv": ",", ".tsv": "\t"}[suffix], random.Random(0), tmp_path / f"x{suffix}"
    num_read = num_noted = 0
    for _ in range(60):
        rows, written = draw_rows(draw, 'abcd" \n' + separator), io.StringIO()
        writer = csv.writer(written, delimiter=separator, quoting=style)
        writer.writerow([f"c{place}" for place in range(len(rows[0]))])
        writer.writerows(rows)
        path.write_bytes(written.getvalue().encode())
        found, note = read_or_refuse(read, path)
        if found is None or "read without quoting" in str(note):  # a line looks like a row, or all lines do
            assert suffix == ".tsv"
            assert found is not None or "looks like a row" in str(note)
            continue
        assert found == rows
        lines = [line for line in written.getvalue().splitlines() if line]
        assert (note is not None) == (len(lines) - 1 > len(rows))
        num_read, num_noted = num_read + 1, num_noted + (note is not None)
    assert num_read >= 30
    assert num_noted >= 10


def test_every_row_of_a_tsv_that_quotes_nothing_is_read(read, tmp_path: Path) -> None:
    draw, path, num_noted = random.Random(0), tmp_path / "x.tsv", 0
    for _ in range(60):
        rows = draw_rows(draw, 'abcd" ')
        header = "\t".join(f"c{place}" for place in range(len(rows[0])))
        path.write_text("\n".join([header, *("\t".join(row) for row in rows)]))
        found, note = read(path)
        assert len(found) == len(rows)
        if note is None:  # all quote marks enclose values, or there are none
            assert [tuple(value.replace('"', "") for value in row) for row in found] == [
                tuple(value.replace('"', "") for value in row) for row in rows
            ]
        else:
            assert found == rows
            num_noted += 1
    assert num_noted >= 30


@pytest.mark.parametrize("claimed", [3, 5])
def test_rows_that_do_not_arrive_are_an_error(shop, monkeypatch: pytest.MonkeyPatch, claimed: int) -> None:
    monkeypatch.setattr(source, "quoting_of", lambda *_, **__: Quoting(num_lines=claimed, num_records=claimed))
    with pytest.raises(DataError, match=f"{claimed - 1} rows are in the file, but 3 were read"):
        shop.run()


def test_values_are_never_guessed_at(shop) -> None:
    ids = [
        "007",
        "7",
        "NA",
        "null",
        "NULL",
        "nan",
        "None",
        "true",
        "2020-01-01",
        "1e5",
        "1,5",
        "0x1F",
        " x",
        "-0",
        "\\N",
    ]
    shop.items.write_text("item_id,text\n" + "".join(f'"{item_id}",NA\n' for item_id in ids))
    shop.interactions.write_text("user_id,item_id\n" + "".join(f'"{item_id}",007\n' for item_id in ids))
    domain = shop.run()
    assert domain.item_ids.to_pylist() == ids
    assert domain.user_ids.to_pylist() == ids
    assert set(domain.texts(np.arange(len(ids)))) == {"NA"}


@pytest.mark.parametrize("suffix", [".xz", ".zip", ".7z"])
def test_a_compressed_file_that_is_not_read_is_refused_with_what_to_do(shop, suffix: str) -> None:
    with pytest.raises(DataError, match=f"unknown type '\\{suffix}'; unpack it first"):
        shop.run(items=shop.write(f"items.csv{suffix}", b"\x1f\x8b"))


def test_a_list_of_users_in_a_tsv_keeps_its_quotes(tmp_path: Path) -> None:
    (tmp_path / "users.tsv").write_text('user_id\tgroup\n"u\ta\nv"\tb\n')
    assert read_user_ids(tmp_path / "users.tsv").to_pylist() == ['"u', 'v"']


def test_a_file_without_quotes_is_read_in_blocks_as_it_is_by_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    pieces = ["a", ",", "\n", "\r\n", "\n\n", "bb,c\n", "d,e\r\n", "\ufeff", "f,g\n", "h,i\n"]
    path, plain = tmp_path / "x.csv", quoting._num_plain_lines
    headers = ("a,b\n", "", '"a","b"\n', "", '\ufeff"a, x",b\r\n', '"a\n', '"a" ,b\n', 'a"b\n', '"a"\rb\n')
    num_plain = 0
    for number in range(600):
        text = headers[number % len(headers)] + "".join(rng.choice(pieces, size=int(rng.integers(1, 12)))) + "y,z\n" * 3
        path.write_text(text[: len(text) - number % 3], newline="")
        monkeypatch.setattr(quoting, "PLAIN_BLOCK_BYTES", int(rng.integers(3, 40)))
        monkeypatch.setattr(quoting, "_num_plain_lines", plain)
        is_strict = bool(number % 5)
        found = quoting.quoting_of(path, ",", is_strict=is_strict)
        num_plain += plain(path, ",") > 0
        monkeypatch.setattr(quoting, "_num_plain_lines", lambda *_: 0)
        assert found == quoting.quoting_of(path, ",", is_strict=is_strict), repr(text)
    assert num_plain > 60


def test_quoted_rows_are_read_in_blocks_as_they_are_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    usual = ["a,b\n", 'a,"b, c"\n', '"say ""x""",\n', '"","d"\n', ",\n"]
    odd = ['"a\n', 'b",c\n', 'a, "b"\n', 'a"b,c\n', "\n", "a\n", "a,b,\n", 'a,"b"\r\n', "a\rb,c\n", '"a\r",b\n', "a,b"]
    path, num_whole, took_whole = tmp_path / "x.csv", 0, quoting._Scan.took_whole

    def judged(*, is_strict: bool) -> Quoting | str:
        try:
            return quoting.quoting_of(path, ",", is_strict=is_strict)
        except DataError as error:
            return str(error)

    def counted(scan: quoting._Scan, block: bytes) -> bool:
        nonlocal num_whole
        is_taken = took_whole(scan, block)
        num_whole += is_taken
        return is_taken

    for number in range(400):
        lines = [str(rng.choice(odd if rng.random() < 0.1 else usual)) for _ in range(rng.integers(1, 20))]
        header = ["a,b\n", '"a, x","b"\n', '\ufeffa,"b"\n', '"a"\n'][number % 4]
        path.write_text(header + "".join(lines), newline="")
        monkeypatch.setattr(quoting, "QUOTED_BLOCK_BYTES", int(rng.integers(1, 60)))
        monkeypatch.setattr(quoting, "MAX_LINE_BYTES", 12 if number % 3 == 0 else 2_000_000)
        monkeypatch.setattr(quoting._Scan, "took_whole", counted)
        found = judged(is_strict=number % 7 in (0, 2, 5))
        monkeypatch.setattr(quoting._Scan, "took_whole", lambda *_: False)
        assert found == judged(is_strict=number % 7 in (0, 2, 5)), repr(path.read_text())
    assert num_whole > 300
