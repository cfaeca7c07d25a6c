"""Tables for people: cells as text, and a layout that fits the width of a terminal."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

ABSENT = "-"  # nothing was measured; 0.0 would claim that something was
MAX_TRANSPOSED = 6  # rows of a table that may become columns
INDENT = "  "
FILE_WIDTH = 1000  # a table that goes to a file is as wide as it is


class Figure(Protocol):
    """A number with what belongs to it, such as its interval."""

    def pieces(self) -> tuple[str, ...]:
        """Its text in pieces; a line may end between two of them."""
        ...


Cell: TypeAlias = "str | int | float | Figure | None"


@dataclass(frozen=True)
class PlainTable:
    """Any table, of parameters or of statistics too: columns, and rows of as many cells.

    Printed to a console it fits its width: nothing is cut, and no number is broken. Where it is too wide, its texts are
    wrapped, its intervals go below their figures, and its outer lines go. Where that does not do, a table of few rows
    is turned on its side, and any other becomes a list: a block for each row, a line for each cell. Markup and control
    characters in its texts are not obeyed.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]

    def __post_init__(self) -> None:
        for place, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"table {self.title!r}: row {place}: {len(row)} cells, {len(self.columns)} columns")

    def transposed(self) -> PlainTable:
        """Rows as columns; the cells of the first column become the headings."""
        heads = [self.columns[0], *(shown(row[0]) for row in self.rows)]
        rows = [[name, *(row[place] for row in self.rows)] for place, name in enumerate(self.columns) if place]
        return PlainTable(self.title, heads, rows)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room, roomy = options.max_width, options.update(no_wrap=False, overflow="fold")
        if self.title:
            yield from console.render(Text(visible(self.title)), roomy)
        views = [self]
        if 0 < len(self.rows) <= MAX_TRANSPOSED and len(self.columns) > 2:
            views.append(self.transposed())
        for view, has_edge in itertools.product(views, (True, False)):
            widths = _column_widths(view, room, has_edge=has_edge)
            if widths is not None:
                yield from console.render(_boxed(view, widths, has_edge=has_edge), roomy)
                return
        for line in _listed(self, room):
            yield from console.render(Text(line), roomy)


def are_texts(table: PlainTable) -> list[bool]:
    """Which columns hold text, and so stand left."""
    return [any(isinstance(row[place], str) for row in table.rows) for place in range(len(table.columns))]


def shown(cell: Cell) -> str:
    """A cell as people read it, in one line."""
    return " ".join(_pieces(cell))


def visible(text: str) -> str:
    """One line without control characters."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _pieces(cell: Cell) -> tuple[str, ...]:
    if cell is None:
        return (ABSENT,)
    if isinstance(cell, str):
        return (visible(cell),)
    if isinstance(cell, float):
        return (f"{cell:,.0f}" if abs(cell) >= 1000 else f"{cell:.4g}",)
    return (f"{cell:,}",) if isinstance(cell, int) else cell.pieces()


def console_for(environment: Mapping[str, str], *, quiet: bool = False) -> Console:
    """A console on stdout, as wide as its terminal or as `COLUMNS` says; a file gets tables as wide as they are."""
    said = environment.get("COLUMNS", "")
    if said.isdigit() and int(said) == 0:  # a terminal that does not know its width; rich would print nothing
        environment, said = {name: value for name, value in environment.items() if name != "COLUMNS"}, ""
    console = Console(soft_wrap=True, highlight=False, markup=False, quiet=quiet, _environ=environment)
    if not console.is_terminal and not said.isdigit():
        console.width = FILE_WIDTH
    return console


@dataclass(frozen=True)
class Sentence:
    """A line of words that is broken between words where the console is narrower."""

    text: str
    indent: int = 0  # of the further lines

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width
        for line in _wrapped(self.text, room, later=" " * min(self.indent, room // 2)):
            yield from console.render(Text(line), options.update(no_wrap=False, overflow="fold"))


def _column_widths(table: PlainTable, room: int, *, has_edge: bool) -> list[int] | None:
    """The width of each column in a box `room` wide; None where there is no room for the longest words and numbers."""
    wide, least = [], []
    for place, (column, is_text) in enumerate(zip(table.columns, are_texts(table), strict=True)):
        cells = [_pieces(row[place]) for row in table.rows]
        words = [word for pieces in cells for word in (" ".join(pieces).split() if is_text else pieces)]
        wide.append(max(map(cell_len, (visible(column), *map(" ".join, cells)))))
        least.append(max(map(cell_len, (*visible(column).split(), *words)), default=0))
    room -= 3 * len(wide) + (1 if has_edge else -3)  # a line and two spaces for each column, and the last line
    if sum(least) > room:
        return None
    while sum(wide) > room:
        wide[max(range(len(wide)), key=lambda place: wide[place] - least[place])] -= 1
    return wide


def _boxed(table: PlainTable, widths: Sequence[int], *, has_edge: bool) -> Table:
    view = Table(show_edge=has_edge, pad_edge=has_edge)
    for column, is_text, width in zip(table.columns, are_texts(table), widths, strict=True):
        view.add_column(Text(visible(column)), justify="left" if is_text else "right", width=width, overflow="fold")
    rows = [[_pieces(cell) for cell in row] for row in table.rows]
    wide = [any(cell_len(" ".join(row[place])) > width for row in rows) for place, width in enumerate(widths)]
    for row in rows:
        view.add_row(*(Text(("\n" if is_wide else " ").join(cell)) for cell, is_wide in zip(row, wide, strict=True)))
    return view


def _listed(table: PlainTable, room: int) -> Iterator[str]:
    """Each row as a block: its first cell, then a line for each further cell."""
    names = [visible(column) for column in table.columns[1:]]
    label = min(max(map(len, names), default=0), room // 2)
    hanging = " " * (label + 2 * len(INDENT))
    for row in table.rows:
        yield from _wrapped(shown(row[0]), room)
        for name, cell in zip(names, row[1:], strict=True):
            start = f"{INDENT}{name:<{label}}{INDENT}"
            if len(name) > label:
                yield from _wrapped(name, room, INDENT, 2 * INDENT)
                start = hanging
            yield from _wrapped(shown(cell) or ABSENT, room, start, hanging)


def _wrapped(text: str, room: int, first: str = "", later: str = "") -> list[str]:
    return textwrap.wrap(text, room, initial_indent=first, subsequent_indent=later, break_on_hyphens=False)
