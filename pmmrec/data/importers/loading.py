"""Load the tables of a user into the database of an import, under the names that the import knows."""
# ruff: noqa: S608  statements contain no values of users

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pmmrec.data.importers.mapping import UNKNOWN, apply_mapping, best_guess
from pmmrec.data.importers.picture_column import COLUMN, PictureColumn
from pmmrec.data.importers.source import Source
from pmmrec.data.importers.text_format import TextFormat
from pmmrec.data.importers.times import TimeRule, time_rule
from pmmrec.errors import DataError

FILE_ORDER = "times: no column 'timestamp', so the order of rows is kept"
LISTS = "item_ids"  # a column of interactions with a list of items in each row, oldest first
USED = ("user_id", "item_id", LISTS, "timestamp")


@dataclass(frozen=True)
class LoadedTables:
    """The content of the user's files, before rows are selected: `raw_items` and `raw_interactions` of the database."""

    items: Source
    interactions: Source
    attributes: Mapping[str, str]  # name -> column of `raw_items`
    pictures: PictureColumn | None
    times: TimeRule | None
    num_items: int
    num_interactions: int
    notes: tuple[str, ...] = ()
    has_paths: bool = False  # whether `raw_items.picture_path` names pictures
    has_lists: bool = False  # whether rows of the file became several of `raw_interactions`
    named_columns: Mapping[str, str] = dataclasses.field(default_factory=dict)  # of the import -> of the files


@dataclass(frozen=True)
class Loader:
    """Opens the two files of an import and loads them. Formats and mapping are those of `TableImport`."""

    connection: duckdb.DuckDBPyConnection
    work: Path
    mapping: Mapping[str, str]
    time_format: str | None = None
    image_column: str | None = None
    reads_rating: bool = False

    def load(self, items: tuple[Path | str, TextFormat], interactions: tuple[Path | str, TextFormat]) -> LoadedTables:
        """Raises DataError for files that break a rule, RecipeError for a mapping that fits none of them."""
        opened = Source(items[0], self.connection, items[1], self.work)
        done = Source(interactions[0], self.connection, interactions[1], self.work)
        apply_mapping(self.mapping, opened, done)
        has_paths = self._name_pictures(opened)
        has_lists = done.column(LISTS) is not None
        _require({opened: ("item_id", "text"), done: ("user_id", LISTS if has_lists else "item_id")})
        pictures = PictureColumn.of(opened)
        attributes, num_items = self._load_items(opened, pictures)
        num_rows, times = self._load_interactions(done, has_lists=has_lists)
        notes = [times.note, *times.warnings] if times else [_file_order(done)]
        if has_lists:
            num_rows, note = self._unfold()
            notes.append(note)
        for role, source in (("items", opened), ("interactions", done)):
            notes += source.notes(role)
        notes += [] if has_paths else _about_images(opened, pictures)
        named = {name: _name_of(opened if name == "text" else done, name) for name in ("text", *USED, "rating")}
        if self.image_column is not None:
            named["picture_path"] = named[COLUMN] = self.image_column
        counts, forms = (num_items, num_rows), (has_paths, has_lists)
        return LoadedTables(opened, done, attributes, pictures, times, *counts, tuple(notes), *forms, named)

    def _name_pictures(self, items: Source) -> bool:
        """Whether `image_column` holds paths; one that holds bytes becomes the column `image`."""
        if self.image_column is None:
            return False
        column = items.required(self.image_column)
        if column.holds_bytes:
            items.put(dataclasses.replace(column, name=COLUMN), instead_of=column.name)
        elif column.type != "VARCHAR":
            raise DataError(f"{items.path}: column {column.name!r} is {column.type[:60]}; give bytes, or paths as text")
        return not column.holds_bytes

    def _load_items(self, source: Source, pictures: PictureColumn | None) -> tuple[dict[str, str], int]:
        """Make `raw_items`. Returns the further columns, by name, and the number of rows."""
        further = [
            column
            for column in source.columns
            if column.name not in ("item_id", "text") and column.name.strip() and not column.holds_bytes
        ]
        columns = {"item_id": source.as_id("item_id"), "text": source.as_text("text")}
        if pictures is not None:
            columns |= {"has_bytes": pictures.has_bytes, "has_path_alone": pictures.has_path_alone}
        if self.image_column is not None and (paths := source.column(self.image_column)) is not None:
            columns["picture_path"] = f"CAST({paths.sql} AS VARCHAR)"
        attributes = {column.name: f"attribute_{place}" for place, column in enumerate(further)}
        columns |= {attributes[column.name]: f"CAST({column.sql} AS VARCHAR)" for column in further}
        return attributes, source.load("raw_items", columns)

    def _load_interactions(self, source: Source, *, has_lists: bool) -> tuple[int, TimeRule | None]:
        """Make the view `raw_interactions`. Returns the number of its rows and how times are read.

        Its columns: row, source_row (of the file), user_id, item_id, time, rest (the part of a time that `time` drops),
        stamp (the time as text), and with `reads_rating` rating and rated (the rating as text).
        """
        columns = {"user_id": source.as_id("user_id"), "item_id": self._items_of(source, has_lists=has_lists)}
        stamp, rating = source.column("timestamp"), source.column("rating")
        columns["stamp"] = stamp.sql if stamp else "0"
        if self.reads_rating:
            columns["rating"] = rating.sql if rating else "NULL"
        num_rows = source.load("stamped", columns)  # a TRY_CAST here would type the column of a csv, and fail
        times = None
        if stamp is not None:
            times = time_rule(self.connection, "stamped", stamp, str(source.path), self.time_format)
        time, rest = (times.sql, times.rest) if times else ("row", "CAST(0 AS TINYINT)")
        rated = ", TRY_CAST(rating AS DOUBLE) AS rating, CAST(rating AS VARCHAR) AS rated" if self.reads_rating else ""
        self.connection.execute(
            f"""CREATE VIEW raw_interactions AS SELECT row, row AS source_row, user_id, item_id, {time} AS time,
                {rest} AS rest, CAST(stamp AS VARCHAR) AS stamp{rated} FROM stamped"""
        )
        return num_rows, times

    def _items_of(self, source: Source, *, has_lists: bool) -> str:
        """SQL of the item of a row, or of its items as a list of texts, or as a text."""
        if not has_lists:
            return source.as_id("item_id")
        column = source.required(LISTS)
        if column.type == "VARCHAR":
            return column.sql
        if not re.fullmatch(r"(VARCHAR|U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?)\[\]", column.type):
            kind = column.type[:60]
            raise DataError(
                f"{source.path}: column {LISTS!r} is {kind}; give lists of ids, or texts with blanks between ids"
            )
        return f"CAST({column.sql} AS VARCHAR[])"

    def _unfold(self) -> tuple[int, str]:
        """Turn each list of items in `raw_interactions` into rows, in order; an empty list becomes an empty item id."""
        kind, how = "VARCHAR[]", "lists"
        ((found,),) = self.connection.execute("SELECT any_value(typeof(item_id)) FROM raw_interactions").fetchall()
        items = "item_id"
        if found != kind:
            how, items = self._divided()
        self.connection.execute("ALTER VIEW raw_interactions RENAME TO listed")
        self.connection.execute(
            f"""CREATE TABLE raw_interactions AS SELECT row_number() OVER (ORDER BY source_row, place) AS row,
                * EXCLUDE (place) FROM (
                  SELECT generate_subscripts(list, 1) AS place, unnest(list) AS item_id,
                    * EXCLUDE (row, item_id, items, list) FROM (
                    SELECT *, CASE WHEN len(items) > 0 THEN items ELSE [NULL] END AS list
                    FROM (SELECT *, {items} AS items FROM listed)))"""
        )
        ((num_lists, num_rows),) = self.connection.execute(
            "SELECT (SELECT count(*) FROM listed), (SELECT count(*) FROM raw_interactions)"
        ).fetchall()
        self.connection.execute("DROP VIEW listed")
        note = f"interactions: {num_lists:,} {how} of items give {num_rows:,} rows, which rejected rows are numbered by"
        return int(num_rows), note

    def _divided(self) -> tuple[str, str]:
        """How texts with several ids are divided, and SQL of the list."""
        ((num_brackets, num_blanks, num_texts),) = self.connection.execute(
            r"""SELECT count(*) FILTER (starts_with(trim(item_id), '[')), count(*) FILTER (regexp_matches(trim(item_id),
                '\s')), count(*) FILTER (trim(item_id) <> '') FROM raw_interactions"""
        ).fetchall()
        if num_brackets and num_brackets == num_texts:
            bare = "regexp_replace(trim(item_id), '^\\[\\s*|\\s*\\]$', '', 'g')"
            divided = f"[trim(one, ' ''\"') for one in string_split({bare}, ',')]"
            return "lists in brackets", f"CASE WHEN {bare} <> '' THEN {divided} END"
        sign, what = (r"\s+", "blanks") if num_blanks else (",", "commas")
        return (
            f"lists with {what} between ids",
            f"CASE WHEN trim(item_id) <> '' THEN regexp_split_to_array(trim(item_id), '{sign}') END",
        )


def _name_of(source: Source, name: str) -> str:
    """What the file calls a column that the import calls `name`."""
    column = source.column(name)
    return (column.stored if column is not None else "") or name


def _require(wanted: Mapping[Source, tuple[str, ...]]) -> None:
    """Raise DataError for all missing columns of both files at once."""
    lacking = {source: source.lacking(*names) for source, names in wanted.items()}
    if not any(lacking.values()):
        return
    told = "; ".join(message for message in lacking.values() if message)
    raise DataError(f"{told}; or import with {' '.join(_options(wanted))}")


def _options(wanted: Mapping[Source, tuple[str, ...]]) -> list[str]:
    """The options that would name the missing columns of items and interactions, by the best guess at each."""
    guesses: list[tuple[str, str, str]] = []  # role, name, column
    for role, (source, names) in zip(("items", "interactions"), wanted.items(), strict=True):
        found, lists = [one.name for one in source.columns], [one.name for one in source.columns if "[]" in one.type]
        for name in [name for name in names if source.column(name) is None]:
            guess = best_guess(name, found)
            if name == "item_id" and role == "interactions" and (lists or guess == UNKNOWN):
                several = lists[0] if lists else best_guess(LISTS, found)
                guesses.append((role, name, guess) if several == UNKNOWN else (role, LISTS, several))
            else:
                guesses.append((role, name, guess))
        if role == "interactions" and source.column("timestamp") is None and source.like("timestamp"):
            guesses.append((role, "timestamp", best_guess("timestamp", found)))
    columns = {name: {column for _, other, column in guesses if other == name} for _, name, _ in guesses}
    pairs = [(f"{role}.{name}" if len(columns[name]) > 1 else name, column) for role, name, column in guesses]
    return [f"--map {name}={shlex.quote(column)}" for name, column in dict.fromkeys(pairs)]


def _about_images(items: Source, pictures: PictureColumn | None) -> list[str]:
    """Notes on columns that may be meant as pictures but are not read."""
    notes, column = [], items.column(COLUMN)
    unread = [one.name for one in items.columns if one.holds_bytes and (one.name != COLUMN or pictures is None)]
    if unread:
        named = f"pictures are read from {COLUMN!r}, or from the column that --image-column names"
        notes.append(f"items: columns of bytes not used: {', '.join(unread)}; {named}")
    if column is not None and not column.holds_bytes:
        kept = f"items: column {COLUMN!r} is {column.type} and kept as text"
        notes.append(f"{kept}; pictures come from its bytes in a parquet file, or from a folder")
    return notes


def _file_order(interactions: Source) -> str:
    near = interactions.like("timestamp")
    if not near:
        return FILE_ORDER
    return f"{FILE_ORDER}; is it {' or '.join(map(repr, near))}? Import with --map timestamp={shlex.quote(near[0])}"
