"""Turn a file of a user into what imports read: a text in UTF-8, or a parquet file."""

from __future__ import annotations

import codecs
import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pmmrec.data.importers import records
from pmmrec.data.importers.database import is_database, write_query
from pmmrec.data.importers.text_format import SEPARATORS, UTF8, UTF16_MARKS, TextFormat
from pmmrec.data.importers.unpacking import COMPRESSIONS, unpacked
from pmmrec.data.info import SourceFile
from pmmrec.errors import DataError, RecipeError

PARQUET = ".parquet"
OTHER_COMPRESSIONS = (".xz", ".zip", ".7z", ".rar")
SUFFIXES = (*SEPARATORS, PARQUET, *records.WRITERS)
# The first bytes of files that are not text, whatever their suffix.
SIGNATURES = (
    (b"\x1f\x8b", "a gzip file; end its name in .gz"),
    (b"PK\x03\x04", "a zip file or a workbook (xlsx); unpack it, or end its name in .xlsx"),
    (b"PAR1", "a parquet file; end its name in .parquet"),
    (b"ARROW1", "an Arrow file; end its name in .arrow"),
)


@dataclass(frozen=True)
class Prepared:
    """A file as imports read it."""

    path: Path  # of a UTF-8 text, or of a parquet file
    suffix: str  # of the user's file, without that of its compression
    is_text: bool
    record: SourceFile
    lines: Path | None = None  # of a file of one object a line: the file without its compression
    how: tuple[str, ...] = ()  # what was done to it, if anything: such as "read as utf-16"


def prepared(given: Path | str, text_format: TextFormat, room: Callable[[], Path]) -> Prepared:
    """Prepare a file, or the query of a database; `room` makes a folder for what has to be written.

    Raises DataError for a missing or empty file, an unknown type, a broken archive and a text of another encoding;
    RecipeError for settings of a text where there is none.
    """
    if is_database(given):
        target = room() / "query.parquet"
        write_query(str(given), target)
        return Prepared(target, PARQUET, False, _recorded(target, target.name))
    path = Path(given)
    suffix, compression = _kind(path, is_text=text_format.delimiter is not None)
    _refuse_without_effect(path, suffix, text_format)
    if suffix in SEPARATORS or suffix not in SUFFIXES:
        return _text(path, suffix, compression, text_format, room)
    if suffix == PARQUET:
        return Prepared(path, suffix, False, _recorded(path, path.name))
    target, whole = room() / "rows.parquet", _whole(path, compression, room)
    how = records.WRITERS[suffix](whole, path, target)
    lines = whole if suffix in records.JSON else None
    return Prepared(target, suffix, False, _recorded(path, path.name), lines, how)


def is_text_file(path: Path) -> bool:
    """Whether a file is a csv or another text, by its name."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    return bool(suffixes) and suffixes[-1] not in (PARQUET, *records.WRITERS)


def _whole(path: Path, compression: str | None, room: Callable[[], Path]) -> Path:
    """The file without its compression."""
    if compression is None:
        return path
    target = room() / "unpacked"
    with target.open("wb") as out:
        for block in unpacked(path, compression):
            out.write(block)
    return target


def _kind(path: Path, *, is_text: bool) -> tuple[str, str | None]:
    """The suffix of a file, and how it is compressed. `is_text`: a file of an unknown suffix is a text."""
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give a file, or see `pmmrec data kinds`")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    compression = COMPRESSIONS.get(path.suffix.lower())
    name = path.with_suffix("") if compression else path
    suffix = name.suffix.lower()
    is_known = suffix in SUFFIXES and not (compression and suffix in records.WHOLE_FILES)
    if not is_known and not (is_text and suffix not in OTHER_COMPRESSIONS):
        advice = "unpack it first" if suffix in OTHER_COMPRESSIONS or compression else f"give {', '.join(SUFFIXES)}"
        raise DataError(f"{path}: unknown type {suffix or path.suffix!r}; {advice}")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: is empty; its first line must name the columns")
    return suffix, compression


def _refuse_without_effect(path: Path, suffix: str, text_format: TextFormat) -> None:
    given = [name for name in ("delimiter", "encoding") if getattr(text_format, name) is not None]
    given += ["quote"] if text_format.quote == "none" else []
    if given and suffix in SUFFIXES and suffix not in SEPARATORS:
        raise RecipeError(f"{path}: --{given[0]} has no effect, it is not a csv, tsv or psv; leave it out")


def _text(
    path: Path, suffix: str, compression: str | None, text_format: TextFormat, room: Callable[[], Path]
) -> Prepared:
    """A text as UTF-8: the file itself where it is such, a converted copy otherwise."""
    begin = next(unpacked(path, compression), b"")
    for signature, kind in SIGNATURES:
        if begin.startswith(signature):
            raise DataError(f"{path}: is {kind}")
    found = "utf-16" if begin.startswith(UTF16_MARKS) else UTF8
    encoding = text_format.encoding or found
    is_utf8, how = codecs.lookup(encoding).name in (UTF8, "utf-8-sig"), tuple[str, ...]()
    if begin.startswith(codecs.BOM_UTF8) and not is_utf8:  # with which no text of another encoding begins
        is_utf8, how = True, (f"begins with the mark of UTF-8, so it is not read as {encoding}",)
    if text_format.encoding is None and (b"\0\0" in begin[:8] or (b"\0" in begin[:8] and found == UTF8)):
        raise DataError(f"{path}: line 1: has zero bytes, so it is not UTF-8; name its encoding (--encoding utf-16-le)")
    if compression is None and is_utf8:
        digest = _Digest()
        for _ in decoded(path, unpacked(path, None), UTF8, digest):
            pass
        return Prepared(path, suffix, True, digest.record(path.name), None, how)
    target = room() / f"text{suffix}"
    with target.open("w", encoding=UTF8, newline="") as out:
        for block in decoded(path, unpacked(path, compression), UTF8 if is_utf8 else encoding):
            out.write(block)
    if not target.stat().st_size:
        raise DataError(f"{path}: is empty; its first line must name the columns")
    how = how if is_utf8 else (f"read as {encoding}",)
    return Prepared(target, suffix, True, _recorded(path, path.name), None, how)


class _Digest:
    """Size and SHA-256 of the blocks that it has seen."""

    def __init__(self) -> None:
        self._digest, self._num_bytes = hashlib.sha256(), 0

    def add(self, block: bytes) -> None:
        """Count a block in."""
        self._digest.update(block)
        self._num_bytes += len(block)

    def record(self, file_name: str) -> SourceFile:
        """What was seen, as a file of that name."""
        return SourceFile(file_name=file_name, sha256=self._digest.hexdigest(), num_bytes=self._num_bytes)


def decoded(path: Path, blocks: Iterable[bytes], encoding: str, digest: _Digest | None = None) -> Iterator[str]:
    """Blocks as text, each counted in `digest`. Raises DataError with the line that does not have the encoding."""
    decoder, num_lines, shown = codecs.getincrementaldecoder(encoding)(), 0, encoding.upper().removesuffix("-SIG")
    try:
        for block in blocks:
            if digest is not None:
                digest.add(block)
            text = decoder.decode(block)
            num_lines += text.count("\n")
            yield text
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        read = error.object[: error.start].decode(encoding, errors="ignore")
        line = num_lines + read.count("\n") + 1
        advice = (
            "save the file as UTF-8, or name its encoding (--encoding cp1252)" if shown == "UTF-8" else "name another"
        )
        raise DataError(f"{path}: line {line}: not {shown} text; {advice}") from error
    except UnicodeError as error:  # of UTF-16 without a mark, for one, and of codecs that are rare
        advice = "name another" if not shown.startswith("UTF-") else f"name {encoding}-le or another"
        raise DataError(f"{path}: line {num_lines + 1}: not {shown} text: {error}; {advice}") from error


def _recorded(path: Path, file_name: str) -> SourceFile:
    """Size and SHA-256 of a file."""
    digest = _Digest()
    for block in unpacked(path, None):
        digest.add(block)
    return digest.record(file_name)
