"""Decide whether quote marks in a text file enclose values, and count the rows that it must give."""

from __future__ import annotations

import codecs
import io
import re
from dataclasses import dataclass
from pathlib import Path

from pmmrec.errors import DataError

MAX_LINE_BYTES = 2_000_000  # of a row that DuckDB reads
QUOTE = b'"'
QUOTED_BLOCK_BYTES = 60_000  # one row that is not of the usual form makes it be read line by line
PLAIN_BLOCK_BYTES = 900_000  # so that a line without an end in one of them may be longer than `MAX_LINE_BYTES`
_Patterns = dict[bool, dict[bool, re.Pattern[bytes]]]


@dataclass(frozen=True)
class Quoting:
    """How the quote marks of a file are read, and how many lines and rows that gives."""

    encloses: bool = True  # whether they enclose values; False: they are text
    num_lines: int = 0  # with the header, without empty lines
    num_records: int | None = None  # rows and header; None: only DuckDB can tell
    first_odd: int = 0  # the first line that breaks RFC 4180 or begins a value that goes on in the next line; 0: none
    num_read: int = 0  # lines, empty ones too
    num_padded: int = 0  # lines with blanks around a quoted value, which DuckDB drops
    first_padded: int = 0

    def notes(self, role: str, num_rows: int) -> list[str]:
        """What a user should know about the quoting, once the rows are read; `role` says what the file holds."""
        if not self.encloses and not self.first_odd:
            return []
        if not self.encloses:
            return [f"{role}: read without quoting, since a quote mark in line {self.first_odd} encloses no value"]
        notes, num_inside = [], self.num_lines - 1 - num_rows
        if self.num_lines and num_inside > 0:
            notes.append(
                f"{role}: lines that continue a quoted value: {num_inside:,}, the first after line {self.first_odd}; "
                "if they are rows, a quote mark is not closed there"
            )
        if self.num_padded:
            notes.append(
                f"{role}: lines with blanks around a quoted value, which are dropped: {self.num_padded:,}, the first "
                f"is line {self.first_padded}; write blanks that belong to a value inside the quotes"
            )
        return notes


def quoting_of(path: Path, separator: str, *, is_strict: bool, shown: Path | None = None) -> Quoting:
    """Read a file line by line, by the rules of RFC 4180; blanks around quoted values are allowed unless `is_strict`.

    `is_strict` (tsv, often written without quoting): where a line breaks these rules, or a quoted value goes on in the
    next line, quote marks are text if all lines have as many values as the first. If not, raises DataError where a
    value would swallow a line that looks like a row; `shown` is what it calls the file.
    """
    num_lines = _num_plain_lines(path, separator)
    if num_lines:
        return Quoting(True, num_lines, num_lines, num_read=num_lines)
    scan = _Scan(separator, allows_blanks=not is_strict)
    with path.open("rb") as file:
        first = file.readline(MAX_LINE_BYTES + 2)
        if not first.endswith(b"\n"):
            return Quoting()  # DuckDB refuses the line, or there is no row, or lines end as on an old Mac
        scan.take(first.removeprefix(codecs.BOM_UTF8))
        while block := file.read(QUOTED_BLOCK_BYTES):
            block += file.readline(MAX_LINE_BYTES + 2)
            if len(block) <= MAX_LINE_BYTES and scan.took_whole(block):
                continue
            for line in io.BytesIO(block):
                if len(line) > MAX_LINE_BYTES + line.endswith(b"\n") * 2:
                    return Quoting()  # DuckDB refuses the line
                scan.take(line)
    scan.end()
    num_records = scan.num_records if scan.follows_rules else None
    if not is_strict or (scan.follows_rules and not scan.num_inside):
        padded = scan.num_padded, scan.first_padded
        return Quoting(True, scan.num_lines, num_records, scan.first_odd, scan.num_read, *padded)
    if scan.has_shape:
        return Quoting(False, scan.num_lines, scan.num_lines, scan.first_odd, scan.num_read)
    if scan.first_swallowed:
        raise DataError(
            f"{shown or path}: line {scan.first_swallowed} looks like a row, but a quote mark that opens in line "
            f"{scan.first_odd} or later would make it part of a value; close the quote, or quote no value at all"
        )
    num_records = scan.num_records if scan.follows_rules else scan.num_lines
    return Quoting(True, scan.num_lines, num_records, scan.first_odd, scan.num_read)


def _num_plain_lines(path: Path, separator: str) -> int:
    """How many lines a file has in which no quote mark, no empty line and no very long one is; 0 for any other file.

    The first line may have quote marks, since some programs put them around names of columns alone.
    """
    num_lines, before = 0, b"\n"
    with path.open("rb") as file:
        line = file.readline(MAX_LINE_BYTES)
        header, end, _ = line.removeprefix(codecs.BOM_UTF8).partition(b"\r\n" if line.endswith(b"\r\n") else b"\n")
        if end and QUOTE in header and b"\r" not in header and _is_quoted_by_the_rules(header, separator):
            num_lines, before = 1, line[-2:]
        else:
            file.seek(0)
        while block := file.read(PLAIN_BLOCK_BYTES):
            if before == b"\n":
                block = block.removeprefix(codecs.BOM_UTF8)
            seen = before + block
            is_long = b"\n" not in block and (len(block) == PLAIN_BLOCK_BYTES or not num_lines)
            if QUOTE in block or is_long or b"\n\n" in seen or b"\n\r\n" in seen:
                return 0
            num_lines += block.count(b"\n")
            before = seen[-2:]
    return num_lines + (not before.endswith(b"\n"))


def _is_quoted_by_the_rules(line: bytes, separator: str) -> bool:
    return _line_patterns(re.escape(separator.encode()))[False][False].fullmatch(line) is not None


def unquoted(path: Path) -> Quoting:
    """Quote marks are text; counts the lines that are not empty, each of which is a row."""
    with path.open("rb") as file:
        num_read = num_lines = 0
        for line in file:
            num_read += 1
            num_lines += bool(line.strip(b"\r\n"))
    return Quoting(False, num_lines, num_lines, num_read=num_read)


def _line_patterns(sign: bytes, lead: bytes = b"", trail: bytes = b"") -> _Patterns:
    """Lines that follow the rules, by whether a value is open where the line begins, then where it ends.

    `sign` is the escaped separator; `lead` and `trail` match what may stand before and after a quoted value.
    """
    inner = rb'[^"]*(?:""[^"]*)*'
    value = rb'(?:%b"%b"%b|[^"%b]*)' % (lead, inner, trail, sign)
    before, after = rb"(?:%b%b)*" % (value, sign), rb"%b(?:%b%b)*" % (trail, sign, value)
    return {
        False: {
            False: re.compile(rb"%b(?:%b%b)*" % (value, sign, value)),
            True: re.compile(rb'%b%b"%b' % (before, lead, inner)),
        },
        True: {
            False: re.compile(rb'%b"%b' % (inner, after)),
            True: re.compile(rb'%b(?:"%b%b%b%b"%b)?' % (inner, trail, sign, before, lead, inner)),
        },
    }


def _rows_pattern(sign: bytes, num_separators: int, ends_in: bytes, *, is_strict: bool) -> re.Pattern[bytes]:
    """Lines that hold one row each, of so many values, by the rules and without a return within a value.

    `is_strict`: nor with a separator within a value, so that they are rows without quoting, too.
    """
    inner = rb'[^"\r\n%b]*' % (sign if is_strict else b"")
    value = rb'(?:"%b(?:""%b)*"|[^"\r\n%b]*)' % (inner, inner, sign)
    return re.compile(rb"(?:%b(?:%b%b){%d}%b)*" % (value, sign, value, num_separators, ends_in))


class _Scan:
    """What the lines of a file say about its quoting."""

    def __init__(self, separator: str, *, allows_blanks: bool) -> None:
        sign = re.escape(separator.encode())
        self._quoted = re.compile(rb'"[^"]*(?:""[^"]*)*"')
        self._strict = _line_patterns(sign)
        self._lenient = _line_patterns(sign, rb" ?", rb" *") if allows_blanks else None  # as DuckDB reads blanks
        self._separator = separator.encode()
        self._num_separators, self._ends_in = -1, b""
        self._rows: re.Pattern[bytes] | None = None
        self._is_open = False
        self.follows_rules = self.has_shape = True
        self.num_lines = self.num_records = self.num_inside = self.num_padded = self.num_read = 0
        self.first_odd = self.first_swallowed = self.first_padded = 0

    def took_whole(self, block: bytes) -> bool:
        """Read lines at once that all hold one row of the usual form; where some do not, nothing is read."""
        if self._rows is None or self._is_open or self._rows.fullmatch(block) is None:
            return False
        num_rows = block.count(b"\n")
        self.num_read += num_rows
        self.num_lines += num_rows
        self.num_records += num_rows
        return True

    def take(self, line: bytes) -> None:
        """Read the next line."""
        ends_in = b"\r\n" if line.endswith(b"\r\n") else line[-1:] if line.endswith(b"\n") else b""
        line = line.removesuffix(ends_in)
        self.num_read += 1
        number = self.num_read
        if self._num_separators < 0:
            self._num_separators, self._ends_in = self._quoted.sub(b"", line).count(self._separator), ends_in
            if self._num_separators:  # the only value of a row may be empty, and its line too
                sign, is_strict = re.escape(self._separator), self._lenient is None
                self._rows = _rows_pattern(sign, self._num_separators, ends_in, is_strict=is_strict)
        if not line and self._num_separators:
            return  # DuckDB skips it; the only value of a row may be empty
        is_row = ends_in in (self._ends_in, b"") and self._has_all_values(line)
        self.has_shape = self.has_shape and is_row
        self.num_lines += 1
        if self._is_open:
            self.num_inside += 1
            if is_row and self._num_separators and not self.first_swallowed:
                self.first_swallowed = number
        else:
            self.num_records += 1
        if self.follows_rules and QUOTE in line:
            self._take_quotes(number, line)

    def end(self) -> None:
        """Say that no line is left."""
        self.follows_rules = self.follows_rules and not self._is_open

    def _take_quotes(self, number: int, line: bytes) -> None:
        is_open = self._ends_open(self._strict, line)
        if is_open is None and self._lenient is not None:
            is_open = self._ends_open(self._lenient, line)
            if is_open is not None:
                self.num_padded += 1
                self.first_padded = self.first_padded or number
        if is_open is None:
            self.follows_rules = False
        if not self.first_odd and is_open is not False:
            self.first_odd = number
        self._is_open = bool(is_open)

    def _ends_open(self, patterns: _Patterns, line: bytes) -> bool | None:
        """Whether a quoted value is open at the end of a line; None: the line follows none of the patterns."""
        ends = patterns[self._is_open]
        is_open = next((is_open for is_open, pattern in ends.items() if pattern.fullmatch(line)), None)
        if is_open is False and not self._is_open and not self._has_all_values(self._quoted.sub(b"", line)):
            return None  # of two quote marks one begins a value and the other ends a later one
        return is_open

    def _has_all_values(self, line: bytes) -> bool:
        """Whether the line has as many values as the first; DuckDB allows a separator after the last of them."""
        num_more = line.count(self._separator) - self._num_separators
        return num_more == 0 or (num_more == 1 and line.endswith(self._separator))
