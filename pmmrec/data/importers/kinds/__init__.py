"""Kinds of data sets: each recognises a folder in one published layout, and says how its files are read."""
# ruff: noqa: S608  statements contain no values of users

from __future__ import annotations

import fnmatch
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pmmrec.data.importers.prepared import decoded, prepared
from pmmrec.data.importers.quoting import unquoted
from pmmrec.data.importers.records import LINE, batches_to, plain_path, write_rows
from pmmrec.data.importers.source import explain, is_of_machine
from pmmrec.data.importers.text_format import TextFormat
from pmmrec.data.importers.unpacking import COMPRESSIONS, unpacked
from pmmrec.data.importers.work_database import work_database
from pmmrec.errors import DataError, RecipeError
from pmmrec.family import Entry, Family
from pmmrec.settings import PartConfig

PLAIN = TextFormat()
TABS = TextFormat(delimiter="\t", quote="none")
AUTO = "auto"


@dataclass(frozen=True)
class Inputs:
    """The two tables of a folder as `TableImport` reads them. Names of columns are those of the files."""

    items: Path | None  # None: the data set has none, the user must name a table
    interactions: Path
    columns: Mapping[str, str] = field(default_factory=dict)
    items_format: TextFormat = PLAIN
    interactions_format: TextFormat = PLAIN
    images: Path | None = None
    repeated_items: str = "refuse"

    def tree(self) -> dict[str, Any]:
        """The settings of an import."""
        tree = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {name: value for name, value in tree.items() if value is not None}


class Kind(ABC):
    """A folder in one published layout; `expects` names its files, `work` is a folder for what must be converted."""

    expects: ClassVar[str]
    encoding: str | None = None  # of its texts, where the user names one

    def __init__(self, config: PartConfig, folder: Path, work: Path) -> None:  # noqa: ARG002  of kinds with settings
        self.folder, self.work = folder, work

    @abstractmethod
    def recognise(self) -> str | None:
        """By which files the folder is of this kind; None where it is not."""

    @abstractmethod
    def inputs(self) -> Inputs:
        """How the files are read. Raises DataError where one is missing or ambiguous."""

    def split(self, work: Path) -> tuple[str, Path] | None:  # noqa: ARG002  of kinds that give one
        """The name of the split that the files give, and a table of it (user_id, item_id, split), written in `work`.

        None where they give none; rows of a user and an item are in the order of time.
        """
        return None


importers: Family[Kind] = Family("kind of import", home=__name__)


def kind_of(name: str, settings: Mapping[str, Any], folder: Path, work: Path) -> tuple[Kind, str]:
    """The kind of that name, or with `auto` the one that recognises the folder, and by which files.

    Raises RecipeError for an unknown name, DataError where no kind recognises the folder, or several do.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; give the folder of the data set")
    if "type" in settings:
        raise RecipeError(f"--set type={settings['type']}: the kind is named before the folder; leave it out")
    if name == AUTO:
        made = [(one.name, one.part_class(_tried(one, settings), folder, work)) for one in importers]
        found = [(one, why) for one, kind in made if (why := kind.recognise()) is not None]
        if len(found) != 1:
            told = "; ".join(f"{one} by {why}" for one, why in found) or "no kind"
            holds = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
            raise DataError(f"{folder}: {told} would read this folder, which holds {holds}; see `pmmrec data kinds`")
        name = found[0][0]
    config = importers.config({**settings, "type": name})
    kind = importers.part_class(config)(config, folder, work)
    why = kind.recognise()
    if why is None:
        raise DataError(f"{folder}: is no folder of {name}, which expects {kind.expects}")
    return kind, f"{name}, recognised by {why}"


def _tried(entry: Entry[Kind], settings: Mapping[str, Any]) -> PartConfig:
    """The settings with which a kind looks at a folder: those that are given, where it has all of them."""
    has_all = settings.keys() <= entry.config_class.model_fields.keys()
    return importers.config({**(settings if has_all else {}), "type": entry.name})


def matching(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder whose names match, compressed or not, in order."""
    paths = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    return [path for path in paths if fnmatch.fnmatchcase(_plain_name(path.name), pattern)]


def optional_file(folder: Path, *patterns: str) -> Path | None:
    """The only file that matches a pattern, compressed or not; the first pattern that any matches counts.

    Raises DataError where several match it.
    """
    for pattern in patterns:
        found = matching(folder, pattern)
        if len(found) > 1:
            names = ", ".join(path.name for path in found[:4])
            raise DataError(f"{folder}: {len(found)} files match {pattern}: {names}; leave one")
        if found:
            return found[0]
    return None


def required_file(folder: Path, *patterns: str) -> Path:
    """`optional_file`, where there must be one. Raises DataError for none."""
    found = optional_file(folder, *patterns)
    if found is None:
        raise DataError(f"{folder}: no file {' or '.join(patterns)}")
    return found


def has_files(folder: Path, *patterns: str) -> bool:
    """Whether each pattern has a file, compressed or not."""
    return all(matching(folder, pattern) for pattern in patterns)


def _plain_name(name: str) -> str:
    return next((name.removesuffix(suffix) for suffix in COMPRESSIONS if name.endswith(suffix)), name)


def first_folder(folder: Path, *patterns: str) -> Path | None:
    """The first folder below that matches a pattern, such as one of pictures."""
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return next((path for pattern in patterns for path in folders if fnmatch.fnmatchcase(path.name, pattern)), None)


def pictures_in(folder: Path, *patterns: str) -> Path | None:
    """The first folder below that matches a pattern, otherwise the only LMDB file."""
    found = first_folder(folder, *patterns)
    databases = matching(folder, "*.lmdb")
    return databases[0] if found is None and len(databases) == 1 else found


def first_line(path: Path, encoding: str = "utf-8-sig") -> str:
    """The first line of a text, compressed or not; empty where there is none."""
    block = next(unpacked(path, COMPRESSIONS.get(path.suffix)), b"")
    return re.split(rb"[\r\n]", block, maxsplit=1)[0].decode(encoding, errors="replace")


def lines_of(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Numbered lines of a text, compressed or not; not all are held. Raises DataError for another encoding."""
    held, done = "", 0
    for block in decoded(path, unpacked(path, COMPRESSIONS.get(path.suffix.lower())), encoding or "utf-8-sig"):
        *whole, held = (held + block).split("\n")
        for line in whole:
            done += 1
            yield done, line.rstrip("\r")
    yield done + 1, held.rstrip("\r")


def is_utf8(path: Path) -> bool:
    """Whether a text, compressed or not, is UTF-8; a broken archive is none."""
    try:
        for _ in decoded(path, unpacked(path, COMPRESSIONS.get(path.suffix.lower())), "utf-8"):
            pass
    except DataError:
        return False
    return True


def converted(rows: Iterable[Mapping[str, Any]], target: Path, origin: Path) -> Path:
    """Write rows as a table that imports read; every value becomes text.

    `origin` is the user's file; a column `LINE` names the line of each row in it.
    """
    write_rows(rows, target, origin=origin.name)
    return target


def queried(
    query: str, target: Path, tables: Mapping[str, tuple[Path, tuple[str, ...], str]], encoding: str | None = None
) -> Path:
    """Write the rows of a query as a table. `tables`: name -> a text without quoting, its columns and its separator.

    Tables have two further columns: `row`, and `LINE`, which the query may select of the first, whose rows it gives.
    Raises DataError for a text that cannot be read so, and where the query gives no rows.
    """
    origin, *_ = (path for path, _, _ in tables.values())
    where = ", ".join(str(path) for path, _, _ in tables.values())
    try:
        with work_database(target.parent) as connection:
            for name, text in tables.items():
                _load_text(connection, name, *text, target.parent, encoding)
            batches_to(pa.RecordBatchReader.from_stream(connection.sql(query)), target, origin=origin.name)
    except duckdb.Error as error:
        if is_of_machine(error):
            raise
        raise DataError(f"{where}: {explain(str(error))}") from error
    if not pq.read_metadata(target).num_rows:
        raise DataError(f"{where}: no row of the table can be made of it")
    return target


def _load_text(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    path: Path,
    columns: tuple[str, ...],
    sign: str,
    work: Path,
    encoding: str | None,
) -> None:
    file = prepared(path, TextFormat(delimiter=sign, encoding=encoding), lambda: Path(tempfile.mkdtemp(dir=work))).path
    lines = unquoted(file)
    line = "rowid + 1" if lines.num_lines == lines.num_read else "CAST(NULL AS BIGINT)"  # empty lines are skipped
    kinds = ", ".join(f"'{column}': 'VARCHAR'" for column in columns)
    dialect = f"columns={{{kinds}}}, delim='{sign}', quote='', escape='', header=false, auto_detect=false"
    source = f"read_csv($path, {dialect})"
    connection.execute(f"CREATE TABLE {name}_rows AS SELECT * FROM {source}", {"path": plain_path(file)})
    connection.execute(f"CREATE VIEW {name} AS SELECT rowid AS row, {line} AS {LINE}, * FROM {name}_rows")
