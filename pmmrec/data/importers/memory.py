"""Import tables that are in memory."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from pmmrec.data.domain import Domain
from pmmrec.data.importers.records import write_stream
from pmmrec.data.importers.table import TableImport, import_prepared
from pmmrec.errors import DataError, RecipeError
from pmmrec.homes import expanded
from pmmrec.progress import Progress
from pmmrec.settings import validate

INDEX = "__index_level_"  # how pyarrow calls an index of pandas


def import_tables(
    items: Any, interactions: Any, out: Path, settings: Mapping[str, Any], progress: Progress | None = None
) -> Domain:
    """See `Domain.from_tables`."""
    out, folder = expanded(Path(out)), []
    tree = {"name": out.name, **settings, "out": out}

    def prepare(work: Path) -> TableImport:
        folder.append(f"{work}/")
        for role, given in (("items", items), ("interactions", interactions)):
            is_named = isinstance(given, str | Path)
            tree[role] = given if is_named else _written(given, work / f"{role}.parquet", role)
        return validate(TableImport, tree, "arguments")

    try:
        return import_prepared(out, prepare, progress)
    except (DataError, RecipeError) as error:  # names the table, not the file that it became
        told = str(error)
        for work in folder:
            told = told.replace(work, "").replace(".parquet:", ":")
        raise type(error)(_with_columns(told)) from error


def _with_columns(told: str) -> str:
    """A message with the setting `columns` in place of the options of the command line that name columns."""
    fault, sign, options = told.partition("; or import with ")
    if not sign:
        return told
    pairs = (option.partition("=") for option in shlex.split(options) if option != "--map")
    return f"{fault}; or give columns={ ({name: column for name, _, column in pairs}) }"


def _written(given: Any, target: Path, role: str) -> Path:
    """A table in memory as a file that imports read. Raises DataError for an object that is no table."""
    if isinstance(given, Mapping):
        single = next((name for name, value in given.items() if isinstance(value, str | bytes)), None)
        if single is not None:  # which pyarrow would take for a column of letters
            raise DataError(f"{role}: column {single!r} is a text, not a list of values; give a list")
        try:
            given = pa.table(dict(given))
        except (pa.ArrowException, TypeError, ValueError) as error:
            raise DataError(f"{role}: columns do not make a table: {error}") from error
    if not hasattr(given, "__arrow_c_stream__"):
        kinds = "a pandas or polars DataFrame, a pyarrow Table, a DuckDB relation, a dict of columns or a path"
        raise DataError(f"{role}: {type(given).__name__} is no table; give {kinds}")
    write_stream(given, target, role, hidden=INDEX)
    return target
