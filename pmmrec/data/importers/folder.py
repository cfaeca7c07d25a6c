"""Import a data set in a published layout by its folder."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pmmrec.data.domain import Domain
from pmmrec.data.importers.given_split import store_split
from pmmrec.data.importers.kinds import Kind, importers, kind_of
from pmmrec.data.importers.prepared import is_text_file
from pmmrec.data.importers.table import TableImport, import_prepared
from pmmrec.data.importers.text_format import TextFormat
from pmmrec.errors import DataError, RecipeError
from pmmrec.homes import expanded
from pmmrec.progress import Progress
from pmmrec.settings import PartConfig, validate


@dataclass(frozen=True)
class KindLine:
    """A kind of data set, for a list."""

    name: str
    expects: str
    summary: str
    settings: tuple[str, ...]


def kind_lines() -> list[KindLine]:
    """All kinds, by name."""
    return [
        KindLine(one.name, one.part_class.expects, one.summary, _settings(one.config_class))
        for one in sorted(importers, key=lambda one: one.name)
    ]


def _settings(config_class: type[PartConfig]) -> tuple[str, ...]:
    fields = config_class.model_fields.items()
    return tuple(f"{name}={field.default}" for name, field in fields if name != "type")


def import_folder(
    kind: str,
    folder: Path,
    settings: Mapping[str, Any],
    tree: Mapping[str, Any],
    progress: Progress | None = None,
    encoding: str | None = None,
) -> tuple[Domain, str]:
    """Import `folder` as a data set of a kind, or `auto`. Returns the domain, and by which files it was recognised.

    A split that the files give is stored beside the domain. `encoding` is that of all texts. `settings` are those of
    the kind, `tree` those of `TableImport`; what stands in `tree` wins over what the kind says. Raises what `kind_of`
    and `import_table` raise, and DataError where neither gives a table of items.
    """
    folder, told = expanded(Path(folder)), {"work": "", "why": ""}
    kinds: list[Kind] = []

    def prepare(work: Path) -> TableImport:
        found, told["why"] = kind_of(kind, settings, folder, work)
        told["work"] = str(work)
        kinds.append(found)
        found.encoding = encoding
        return _settings_of(found, tree)

    try:
        domain = import_prepared(_out(tree), prepare, progress)
    except (DataError, RecipeError) as error:  # names the folder, not the file that was converted
        if not told["work"]:
            raise
        raise type(error)(str(error).replace(told["work"], str(folder))) from error
    return domain, "; ".join([told["why"], *_with_split(domain, kinds[0])])


def _with_split(domain: Domain, kind: Kind) -> list[str]:
    """Store the split that the files of a kind give. Says what was stored, or why none could be."""
    with tempfile.TemporaryDirectory(dir=domain.folder, prefix=".split-") as work:
        given = kind.split(Path(work))
        if given is None:
            return []
        name, table = given
        try:
            stored = store_split(domain.folder, table, name)
        except DataError as error:
            return [f"its split {name} is not stored: {str(error).replace(str(table), name)}"]
    counted = ", ".join(f"{count:,} {part}" for part, count in stored.counts.items())
    return [f"its split is stored as {name}: {counted}"]


def _out(tree: Mapping[str, Any]) -> Path:
    """The folder of the new domain."""
    return expanded(Path(validate(TableImport, {"items": "a", "interactions": "b", **tree}, "arguments").out))


def _settings_of(kind: Kind, tree: Mapping[str, Any]) -> TableImport:
    """The import of a folder; what stands in `tree` wins over what the kind says."""
    inputs = kind.inputs().tree()
    columns = inputs.pop("columns")
    if "items" in tree:  # a table of the user has the names that imports know, or those that the user maps
        columns = {name: column for name, column in columns.items() if name not in ("text", "items.item_id")}
        inputs.pop("items_format", None)
    task = {**inputs, **tree, "columns": {**columns, **tree.get("columns", {})}}
    if "items" not in task:
        raise DataError(f"{kind.folder}: holds no table of items with texts; name one: --items FILE (item_id, text)")
    if kind.encoding is not None:
        _encode(task, kind)
    return validate(TableImport, task, "arguments")


def _encode(task: dict[str, Any], kind: Kind) -> None:
    """Name the encoding of the texts among both tables; what a kind has converted is UTF-8. RecipeError without any."""
    paths = {role: Path(str(task[role])) for role in ("items", "interactions")}
    for role, path in paths.items():
        if is_text_file(path):
            given = task.get(f"{role}_format", TextFormat())
            task[f"{role}_format"] = given.model_copy(update={"encoding": kind.encoding})
    if not any(is_text_file(path) or path.is_relative_to(kind.work) for path in paths.values()):
        raise RecipeError(f"--encoding {kind.encoding}: has no effect, {kind.folder} holds no csv or tsv; leave it out")
