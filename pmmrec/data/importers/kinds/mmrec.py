"""The data sets of MMRec."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from pmmrec.data.importers.kinds import (
    TABS,
    Inputs,
    Kind,
    first_line,
    importers,
    matching,
    queried,
    required_file,
)
from pmmrec.data.importers.records import LINE
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

USERS, ITEMS = "u_id_mapping.csv", "i_id_mapping.csv"
LABEL, WORDS = "x_label", ("train", "validation", "test")
KNOWN = ("userID", "itemID", "rating", "timestamp", "x_label")


class MMRecConfig(PartConfig):
    """How users and items are called."""

    type: Literal["mmrec"] = "mmrec"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"ids": "original"},)
    ids: Literal["number", "original"] = Field(
        "number", description=f"number: MMRec's own; original: what {USERS} and {ITEMS} say of each."
    )


@importers.register("mmrec", MMRecConfig)
class MMRec(Kind):
    """MMRec: numbered users and items of an Amazon category, with ratings and times.

    Its files hold features, but no texts or pictures of items: name a table with both, `--items FILE`, whose item_id is
    MMRec's number, or the original id with `--set ids=original`. The parts of `x_label` become a split of
    the domain: `split: {type: given, name: x_label}`. `pmmrec data features DOMAIN --from FILE` stores features
    afterwards.
    """

    expects = "*.inter with userID, itemID, rating, timestamp; and --items FILE with item_id and text"

    def __init__(self, config: MMRecConfig, folder: Path, work: Path) -> None:
        super().__init__(config, folder, work)
        self.has_original_ids = config.ids == "original"

    def recognise(self) -> str | None:
        logs = [log for log in matching(self.folder, "*.inter") if "itemID" in first_line(log).split("\t")]
        return f"the header of {logs[0].name}" if logs else None

    def inputs(self) -> Inputs:
        log = required_file(self.folder, "*.inter")
        if self.has_original_ids:
            return Inputs(None, self._with_ids(log))
        columns = {"user_id": "userID", "interactions.item_id": "itemID"}
        return Inputs(None, log, columns, interactions_format=TABS)

    def _with_ids(self, log: Path) -> Path:
        """The interactions with the original ids, in order; ids are empty where a number is not mapped."""
        names = first_line(log).split("\t")
        further = [name for name in names if name in KNOWN[2:]]
        if len({*names} & {*KNOWN}) < len(names):
            raise DataError(f"{log}: expected columns {', '.join(KNOWN)}, found {', '.join(names)}; rename them")
        users, items = (required_file(self.folder, name) for name in (USERS, ITEMS))
        selected = ", ".join([f"log.{LINE}", "users.id AS user_id", "items.id AS item_id", *further])
        for path in (users, items):
            _refuse_twice(path)
        query = f"""SELECT {selected} FROM log
                    LEFT JOIN users ON users.number = log.userID LEFT JOIN items ON items.number = log.itemID
                    WHERE log.userID <> 'userID' ORDER BY log.row"""  # noqa: S608  names are those of KNOWN
        pairs = ("id", "number")
        tables = {"log": (log, tuple(names), "\t"), "users": (users, pairs, "\t"), "items": (items, pairs, "\t")}
        return queried(query, self.work / "interactions.parquet", tables, self.encoding)

    def split(self, work: Path) -> tuple[str, Path] | None:
        """The parts of the column `x_label`."""
        log = required_file(self.folder, "*.inter")
        names = tuple(first_line(log).split("\t"))
        if LABEL not in names:
            return None
        ids, tables = ("log.userID AS user_id", "log.itemID AS item_id"), {"log": (log, names, "\t")}
        joined = ""
        if self.has_original_ids:
            ids, pairs = ("users.id AS user_id", "items.id AS item_id"), ("id", "number")
            users, items = (required_file(self.folder, name) for name in (USERS, ITEMS))
            tables |= {"users": (users, pairs, "\t"), "items": (items, pairs, "\t")}
            joined = "JOIN users ON users.number = log.userID JOIN items ON items.number = log.itemID"
        order = "TRY_CAST(log.timestamp AS DOUBLE), log.row" if "timestamp" in names else "log.row"
        words = " ".join(f"WHEN '{label}' THEN '{word}'" for label, word in enumerate(WORDS))
        label = f"CASE regexp_replace(log.{LABEL}, '[.]0+$', '') {words} ELSE log.{LABEL} END AS split"
        query = f"SELECT {ids[0]}, {ids[1]}, {label} FROM log {joined} WHERE log.userID <> 'userID' ORDER BY {order}"  # noqa: S608
        return LABEL, queried(query, work / "split.parquet", tables, self.encoding)


def _refuse_twice(path: Path) -> None:
    """DataError where a number stands for two ids, or an id has two numbers, in a mapping file."""
    seen: tuple[dict[bytes, int], dict[bytes, int]] = {}, {}
    with path.open("rb") as file:
        for line, text in enumerate(file, start=1):
            pair = text.rstrip(b"\r\n").split(b"\t") if text.strip() else []
            for what, known, value in zip(("id", "number"), seen, pair, strict=False):
                first = known.setdefault(value, line)
                if first != line:
                    shown = value.decode(errors="replace")
                    raise DataError(f"{path}: line {line}: {what} {shown!r} stands in line {first}, too; keep one")
