"""Find values of a csv file that a spreadsheet would take for a formula, such as `=cmd()`, and make them text there."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from typing import IO

import pyarrow as pa
import pyarrow.compute as pc

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what begins a cell that a spreadsheet may compute
_PATTERN = r"^[=+\-@\t\r]"


class CsvWriter:
    """Writes columns as rows of a csv file, and counts texts that begin as a formula does.

    `escapes`: such texts get a `'` in front. `separator`: one other than a comma is for values without quoting, which
    must hold neither it nor the end of a line.
    """

    def __init__(self, file: IO[str], *, escapes: bool, separator: str = ",") -> None:
        self._escapes, self.num_formulas = escapes, 0
        if separator == ",":
            self._writer = csv.writer(file, lineterminator="\n")
        else:
            self._writer = csv.writer(
                file, delimiter=separator, lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None
            )

    def write(self, columns: Iterable[Sequence[object]]) -> None:
        """Write a piece of each column."""
        self._writer.writerows(zip(*(self._safe(column) for column in columns), strict=True))

    def _safe(self, column: Sequence[object]) -> Sequence[object]:
        places = [place for place, cell in enumerate(column) if is_formula(cell)]
        self.num_formulas += len(places)
        if not (places and self._escapes):
            return column
        safe = list(column)
        for place in places:
            safe[place] = f"'{column[place]}"
        return safe


def is_formula(cell: object) -> bool:
    """Whether a value is a text that begins as a formula does; numbers are none."""
    return isinstance(cell, str) and cell.startswith(FORMULA)


def count_formulas(column: pa.ChunkedArray) -> int:
    """How many texts of a column begin as a formula does."""
    return int(pc.sum(pc.match_substring_regex(column, _PATTERN)).as_py() or 0)


def escaped(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The same texts, with a `'` before those that begin as a formula does."""
    return pc.replace_substring_regex(column, r"^([=+\-@\t\r])", r"'\1")


def formulas_line(num_formulas: int, *, escapes: bool) -> str:
    """What to tell of them."""
    found = f"{num_formulas:,} cells begin as a formula does (=, +, -, @)"
    if escapes:
        return f"{found} and have a ' in front: a program that reads the file finds it as part of the value"
    return f"{found}, which a spreadsheet may compute: open the files as text, or write them with --escape-formulas"
