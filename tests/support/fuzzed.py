"""Damaged files of every kind of import, and what must hold of an import of them, whatever they hold."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import sqlite3
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
from hypothesis import strategies as st
from layouts import SAMPLES, written
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.data.importers.folder import import_folder
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.verify import verify_domain
from pmmrec.errors import DataError, PMMRecError, RecipeError
from pmmrec.settings import validate

Draw = Callable[[st.SearchStrategy[Any]], Any]
MAX_MESSAGE = 2000  # characters of an error

ITEM_IDS = ["01", "1", "a b", "\u5e3d", "x", "y"]
ITEMS = {
    "item_id": ITEM_IDS,
    "text": ["red; new", 'say "hi"', "Caf\u00e9, warm", None, "=1+1", "b &amp; w"],
    "brand": ["Acme", None, "a,b", "", "z", "z"],
}
LOG = {
    "user_id": [f"u{place % 4}" for place in range(24)],
    "item_id": [ITEM_IDS[place * 5 % 6] for place in range(24)],
    "timestamp": [str(1_600_000_000 + 37 * place % 500) for place in range(24)],
    "rating": [str(place % 5) for place in range(24)],
}


@dataclass(frozen=True)
class Subject:
    """Whole files, and how they are imported. `is_native`: a library in C reads them, which damage may crash."""

    files: Mapping[str, bytes]
    run: Callable[[Path, Path], Domain]
    is_native: bool = False


def attempt(subject: Subject, files: Mapping[str, bytes], room: Path) -> str:
    """Import files in an empty folder. Returns "imported" or the message of the refusal.

    Whatever the files hold: an error has one line and is told as one of the data, nothing stays behind it, and a domain
    is whole, with read = kept + rejected + filtered.
    """
    (room / "data").mkdir()
    data, out = written(room / "data", dict(files)), room / "domain"
    try:
        domain = subject.run(data, out)
    except PMMRecError as error:
        refusal = error
    else:
        return _checked(domain, room)
    message = str(refusal)
    assert isinstance(refusal, DataError | RecipeError), f"{type(refusal).__name__}: {message[:300]}"
    assert len(message.splitlines()) == 1, f"several lines: {message[:300]!r}"
    assert len(message) <= MAX_MESSAGE, f"{len(message)} characters: {message[:300]!r}"
    assert [path.name for path in room.iterdir()] == ["data"], f"left behind: {sorted(room.iterdir())}"
    return message


def _checked(domain: Domain, room: Path) -> str:
    summary = domain.info.summary
    for kind, num_read in (("item", summary.num_items_read), ("interaction", summary.num_interactions_read)):
        lost = [sum(found.get(kind, {}).values()) for found in (summary.rejected, summary.filtered)]
        assert num_read == summary.kept[f"{kind}s"] + sum(lost), summary.balances()
    assert summary.kept["interactions"] == domain.num_interactions
    assert summary.kept["items"] == domain.num_items
    assert verify_domain(domain.folder) == []
    assert sorted(path.name for path in room.iterdir()) == ["data", "domain"]
    return "imported"


class Files(dict[str, bytes]):
    """Content by name; shows no more than the beginning of each."""

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{name}: {content[:200]!r} ({len(content)})" for name, content in self.items()) + "}"


def _place(draw: Draw, content: bytes) -> int:
    return int(draw(st.integers(0, len(content))))


def truncate(draw: Draw, content: bytes) -> bytes:
    return content[: _place(draw, content)]


def flip(draw: Draw, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 4)) if content else 0):
        changed[draw(st.integers(0, len(content) - 1))] ^= draw(st.integers(1, 255))
    return bytes(changed)


PIECES = [b"\0", b'"', b"'", b"\r", b"\n", b"\r\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe9", b"\xed\xa0\xbd", b",", b"\t"]
PIECES += [
    b"\x1b[31m",
    b"../",
    b"{",
    b"]",
    b"\\",
    "\u202e".encode(),
    b"-1",
    b"1e400",
    b"NaN",
    b"null",
    b"::",
    b"=cmd()",
]


def insert(draw: Draw, content: bytes) -> bytes:
    place = _place(draw, content)
    return content[:place] + draw(st.sampled_from(PIECES)) * draw(st.integers(1, 3)) + content[place:]


def grow(draw: Draw, content: bytes) -> bytes:
    """A huge field."""
    place = _place(draw, content)
    return content[:place] + draw(st.sampled_from([b"x", b"9", b'"', b" ", b"\xc3\xa9"])) * 300_000 + content[place:]


def empty(draw: Draw, content: bytes) -> bytes:
    return b""


def _lines(content: bytes) -> tuple[list[bytes], bytes]:
    return content.split(b"\n"), max((b",", b"\t", b"|", b"::", b";"), key=content.count)


def shuffle_columns(draw: Draw, content: bytes) -> bytes:
    """Columns in another order: in all lines, or in all but the first ones."""
    lines, sign = _lines(content)
    width = len(lines[0].split(sign))
    order, first = draw(st.permutations(range(width))), draw(st.integers(0, 2))
    moved = []
    for number, line in enumerate(lines):
        cells = line.split(sign)
        is_moved = number >= first and len(cells) == width
        moved.append(sign.join(cells[place] for place in order) if is_moved else line)
    return b"\n".join(moved)


def drop_or_double_columns(draw: Draw, content: bytes) -> bytes:
    """A column that occurs twice, in the header too, or in no line."""
    lines, sign = _lines(content)
    place, times = draw(st.integers(0, len(lines[0].split(sign)) - 1)), draw(st.sampled_from([0, 2]))
    return b"\n".join(sign.join(_repeated(line.split(sign), place, times)) for line in lines)


def repeat_lines(draw: Draw, content: bytes) -> bytes:
    """A header in the middle, a row twice, or a row that is lost."""
    lines, _ = _lines(content)
    if draw(st.booleans()):
        lines.insert(draw(st.integers(0, len(lines))), lines[0])
        return b"\n".join(lines)
    return b"\n".join(_repeated(lines, draw(st.integers(0, len(lines) - 1)), draw(st.sampled_from([0, 2]))))


def _repeated(cells: list[bytes], place: int, times: int) -> list[bytes]:
    return cells[:place] + cells[place : place + 1] * times + cells[place + 1 :]


def encode_anew(draw: Draw, content: bytes) -> bytes:
    """Another encoding from some place on."""
    place = draw(st.sampled_from([0, len(content) // 2]))
    encoding = draw(st.sampled_from(["utf-16", "utf-16-le", "latin-1", "cp1252", "gb18030", "utf-8-sig", "utf-32"]))
    return content[:place] + content[place:].decode("utf-8", "replace").encode(encoding, "replace")


def end_lines_anew(draw: Draw, content: bytes) -> bytes:
    """Other line ends, in all lines or in some."""
    lines, _ = _lines(content)
    ends, sometimes = draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b"\x85"])), draw(st.integers(1, 3))
    return b"".join(line + (ends if number % sometimes == 0 else b"\n") for number, line in enumerate(lines))


def halve_and_join(draw: Draw, content: bytes) -> bytes:
    """The first half twice, as an interrupted download that was begun anew."""
    half = content[: len(content) // 2]
    return half + (half if draw(st.booleans()) else content)


DAMAGES = [truncate, flip, insert, grow, empty, shuffle_columns, drop_or_double_columns, repeat_lines, encode_anew]
DAMAGES += [end_lines_anew, halve_and_join]
PACKERS: dict[str, tuple[Any, Any]] = {
    ".gz": (gzip.decompress, lambda content: gzip.compress(content, mtime=0)),
    ".bz2": (bz2.decompress, bz2.compress),
}


@st.composite
def damaged(draw: Draw, files: Mapping[str, bytes]) -> Files:
    """Files of which one or several are damaged, once or several times; or one is not there."""
    changed = Files(files)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(changed)))
        damage = draw(st.sampled_from(DAMAGES))
        unpack, pack = PACKERS.get(Path(name).suffix, (bytes, bytes))
        try:
            inside = unpack(changed[name]) if draw(st.booleans()) else None
        except (OSError, EOFError, ValueError, zlib.error):
            inside = None
        changed[name] = damage(draw, changed[name]) if inside is None else pack(damage(draw, inside))
    if draw(st.integers(0, 19)) == 0:
        del changed[draw(st.sampled_from(sorted(changed)))]
    return changed


def _by_kind(kind: str, **tree: Any) -> Callable[[Path, Path], Domain]:
    def run(folder: Path, out: Path) -> Domain:
        given = {name: folder / value if name == "items" else value for name, value in tree.items()}
        settings = given.pop("settings", {})
        return import_folder(kind, folder, settings, {"name": "x", "out": out, "k_core": None, **given})[0]

    return run


def _tables(items: str, log: str, **tree: Any) -> Callable[[Path, Path], Domain]:
    def run(folder: Path, out: Path) -> Domain:
        given = {name: folder / value if name == "images" else value for name, value in tree.items()}
        places = [value.format(folder) if "://" in value else folder / value for value in (items, log)]
        settings = {"items": places[0], "interactions": places[1], "name": "x", "out": out, "k_core": None}
        return import_table(validate(TableImport, {**settings, **given}, "arguments"))

    return run


def _text(table: Mapping[str, list], sign: str) -> bytes:
    def cell(value: str | None) -> str:
        text = value or ""
        return '"' + text.replace('"', '""') + '"' if sign != "\t" and any(one in text for one in (sign, '"')) else text

    rows = [list(table), *zip(*table.values(), strict=True)]
    return "".join(sign.join(map(cell, row)) + "\n" for row in rows).encode()


def _json_lines(table: Mapping[str, list]) -> bytes:
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _parquet(table: Mapping[str, list]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(dict(table)), sink)
    return sink.getvalue()


def _arrow(table: Mapping[str, list], *, is_stream: bool = False) -> bytes:
    sink, made = io.BytesIO(), pa.table(dict(table))
    with (pa.ipc.new_stream if is_stream else pa.ipc.new_file)(sink, made.schema) as writer:
        writer.write_table(made)
    return sink.getvalue()


def _workbook(table: Mapping[str, list]) -> bytes:
    import openpyxl

    book, sink = openpyxl.Workbook(write_only=True), io.BytesIO()
    sheet = book.create_sheet()
    for row in [list(table), *zip(*table.values(), strict=True)]:
        sheet.append(list(row))
    book.save(sink)
    return sink.getvalue()


def _sqlite() -> bytes:
    with tempfile.TemporaryDirectory() as room:
        path = Path(room) / "shop.sqlite"
        with closing(sqlite3.connect(path)) as connection, connection:
            for name, table in (("items", ITEMS), ("log", LOG)):
                connection.execute(f"CREATE TABLE {name} ({', '.join(f'{one} TEXT' for one in table)})")
                marks = ", ".join("?" for _ in table)
                connection.executemany(
                    f"INSERT INTO {name} VALUES ({marks})",  # noqa: S608  names are ours
                    list(zip(*table.values(), strict=True)),
                )
        return path.read_bytes()


def _picture(shade: int, kind: str) -> bytes:
    sink = io.BytesIO()
    Image.new("RGB", (40, 24), (shade, 90, 200)).save(sink, format=kind)
    return sink.getvalue()


PICTURES = {
    f"{ITEM_IDS[place]}.{kind.lower()}": _picture(40 * place, kind) for place, kind in enumerate(["PNG", "JPEG"] * 2)
}


def _zip() -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, content in PICTURES.items():
            archive.writestr(f"deep/{name}", content)
    return sink.getvalue()


def _tar() -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w:gz") as archive:
        for name, content in PICTURES.items():
            member = tarfile.TarInfo(f"deep/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return sink.getvalue()


def _pair(suffix: str, write: Callable[[Mapping[str, list]], bytes], **tree: Any) -> Subject:
    files = {f"items{suffix}": write(ITEMS), f"log{suffix}": write(LOG)}
    return Subject(files, _tables(*files, **tree))


def _with_pictures(name: str, files: Mapping[str, bytes]) -> Subject:
    tables = {"items.csv": _text(ITEMS, ","), "log.csv": _text(LOG, ",")}
    return Subject({**tables, **files}, _tables("items.csv", "log.csv", images=name))


def subjects() -> dict[str, Subject]:
    """Every kind of import with small whole files, by name."""
    found = {
        f"{kind}: {name}": Subject(
            {file: content if isinstance(content, bytes) else content.encode() for file, content in files.items()},
            _by_kind(kind),
        )
        for name, (kind, files, _, _) in SAMPLES.items()
    }
    log = b"userID\titemID\trating\ttimestamp\tx_label\n" + b"".join(
        b"%d\t%d\t5.0\t%d\t%d\n" % (row % 3, row % 4, row, row % 3) for row in range(12)
    )
    numbers = {"baby.inter": log, "items.csv": b"item_id,text\n" + b"".join(b"%d,t%d\n" % (n, n) for n in range(4))}
    found["mmrec: numbers"] = Subject(numbers, _by_kind("mmrec", items="items.csv"))
    names = {
        "u_id_mapping.csv": b"user_id\tuserID\na\t0\nb\t1\nc\t2\n",
        "i_id_mapping.csv": b"asin\titemID\n0\t0\n1\t1\n2\t2\n",
    }
    found["mmrec: ids"] = Subject(
        {**numbers, **names}, _by_kind("mmrec", items="items.csv", settings={"ids": "original"})
    )
    streams = {
        f"{name}/data-00000-of-00001.arrow": _arrow(table, is_stream=True)
        for name, table in (("items", ITEMS), ("interactions", LOG))
    }
    found["hf: folders"] = Subject(streams, _by_kind("hf"))
    found["table: csv"] = _pair(".csv", lambda table: _text(table, ","), min_rating=2)
    found["table: csv;"] = _pair(".csv", lambda table: _text(table, ";"))
    found["table: tsv"] = _pair(".tsv", lambda table: _text(table, "\t"), repeats="last")
    found["table: psv"] = _pair(".psv", lambda table: _text(table, "|"), k_core=2)
    found["table: csv.gz"] = _pair(".csv.gz", lambda table: gzip.compress(_text(table, ","), mtime=0))
    found["table: csv.bz2"] = _pair(".csv.bz2", lambda table: bz2.compress(_text(table, ",")))
    found["table: jsonl"] = _pair(".jsonl", _json_lines)
    found["table: json"] = _pair(".json", lambda table: b"[" + b",\n".join(_json_lines(table).splitlines()) + b"]")
    found["table: parquet"] = _pair(".parquet", _parquet)
    found["table: arrow"] = _pair(".arrow", _arrow)
    found["table: xlsx"] = _pair(".xlsx", _workbook)
    lists = {"user_id": ["u", "v"], "item_ids": ["01 1 x", "y 01"]}
    found["table: lists"] = Subject(
        {"items.csv": _text(ITEMS, ","), "log.tsv": _text(lists, "\t")}, _tables("items.csv", "log.tsv")
    )
    database = "sqlite:///{}/shop.sqlite?table="
    found["table: sqlite"] = Subject(
        {"shop.sqlite": _sqlite()}, _tables(f"{database}items", f"{database}log"), is_native=True
    )
    found["pictures: zip"] = _with_pictures("p.zip", {"p.zip": _zip()})
    found["pictures: tar"] = _with_pictures("p.tar.gz", {"p.tar.gz": _tar()})
    found["pictures: folder"] = _with_pictures("p", {f"p/{name}": content for name, content in PICTURES.items()})
    return found
