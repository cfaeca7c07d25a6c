"""Give columns of a user's tables the names that imports know: `item_id=product_id`, `text={title}. {brand}`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence

from pmmrec.data.importers.columns import columns_like
from pmmrec.data.importers.source import NO_TEXTS, Column, Source
from pmmrec.errors import DataError, RecipeError

OF_INTERACTIONS = ("user_id", "item_ids", "timestamp", "rating")  # item_id is in both tables, all others of items alone
UNKNOWN = "COLUMN"  # in place of a column that nothing tells
_FIELD = re.compile(r"\{([^{}]+)\}")
_LIST_OF_TEXTS = "VARCHAR[]"


def apply_mapping(mapping: Mapping[str, str], items: Source, interactions: Source) -> None:
    """Rename and compose columns of both sources. Raises RecipeError for an entry that fits neither."""
    roles = {"items": items, "interactions": interactions}
    for target, given in mapping.items():
        role, _, name = target.rpartition(".") if target.startswith(("items.", "interactions.")) else ("", "", target)
        if role:
            candidates = [roles[role]]
        elif name == "item_id":
            candidates = [items, interactions]
        else:
            candidates = [interactions if name in OF_INTERACTIONS else items]
        wanted = [name for name in _FIELD.findall(given) or [given] if not name.endswith("?")]
        fitting = [source for source in candidates if all(source.original(column) for column in wanted)]
        if not fitting:
            raise RecipeError(_told(target, given, wanted, candidates))
        for source in fitting:
            source.put(_column(source, name, given), instead_of=None if "{" in given else given)


def best_guess(missing: str, found: Sequence[str]) -> str:
    """The column that is most likely meant by a name; `UNKNOWN` where there is none."""
    return next(iter(columns_like(missing, found)), UNKNOWN)


def _column(source: Source, name: str, given: str) -> Column:
    if "{" in given:
        return Column(name, _template(source, given), "VARCHAR")
    column = source.original(given)
    if column is None:
        raise RecipeError(f"--map {name}={given}: {source.path} has no such column")
    if name == "text" and column.type == _LIST_OF_TEXTS:
        return Column(name, f"array_to_string({column.sql}, ' ')", "VARCHAR")
    return dataclasses.replace(column, name=name)


def _template(source: Source, given: str) -> str:
    """SQL of a text with the values of columns. A blank value is left out together with the words before it.

    `{name?}` is blank where the file has no such column.
    """
    parts = _FIELD.split(given)  # words, column, words, column, ..., words
    values = [_as_text(source, name) for name in parts[1::2]]
    is_there = [f"(coalesce(trim({value}), '') <> '')" for value in values]
    pieces = []
    for place, value in enumerate(values):
        before = _quoted(parts[2 * place])
        if place:  # words between two values need both
            before = f"CASE WHEN {' OR '.join(is_there[:place])} THEN {before} ELSE '' END"
        pieces.append(f"CASE WHEN {is_there[place]} THEN {before} || trim({value}) ELSE '' END")
    whole = " || ".join([*pieces, _quoted(parts[-1])])
    return f"(CASE WHEN {' OR '.join(is_there)} THEN {whole} END)"


def _as_text(source: Source, name: str) -> str:
    column = source.original(name.removesuffix("?"))
    if column is None and name.endswith("?"):
        return "CAST(NULL AS VARCHAR)"
    if column is not None and column.type == _LIST_OF_TEXTS:
        return f"array_to_string({column.sql}, ' ')"
    if column is None or NO_TEXTS.match(column.type):
        kind = "missing" if column is None else column.type[:60]
        raise DataError(f"{source.path}: column {name!r} is {kind}; texts are strings or lists of strings")
    return f"CAST({column.sql} AS VARCHAR)"


def _told(target: str, given: str, wanted: Sequence[str], candidates: Sequence[Source]) -> str:
    source = candidates[0]
    found = [column.name for column in source.columns]
    lacking = [column for column in wanted if source.original(column) is None]
    listed = ", ".join(map(repr, found))
    others = "" if len(candidates) == 1 else f", nor has {candidates[1].path}"
    what = ", ".join(map(repr, lacking))
    return f"--map {target}={given}: {source.path} has no column {what}{others}; it has {listed}; name one of them"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
