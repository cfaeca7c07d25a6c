"""The files of IDvs.MoRec, PMMRec, MMSR, IISAN and Adapter4Rec."""

from __future__ import annotations

from typing import Literal

from pmmrec.data.importers.kinds import (
    TABS,
    Inputs,
    Kind,
    first_line,
    has_files,
    importers,
    pictures_in,
    queried,
    required_file,
)
from pmmrec.data.importers.text_format import TextFormat
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

COLUMNS = ("item_id", "text", "abstract")
ITEMS = ("*items_texts.tsv", "*items*.tsv", "*news*.tsv")


class MoRecConfig(PartConfig):
    """These files have no settings."""

    type: Literal["morec"] = "morec"


@importers.register("morec", MoRecConfig)
class MoRec(Kind):
    """MoRec, PMMRec, MMSR, IISAN, Adapter4Rec: one line a user, with items in order, and one line an item.

    Items have a title, or a title and an abstract; where they have neither, pictures are needed.
    """

    expects = "*users*.tsv (USER<tab>ITEM ITEM ...), *items*.tsv (ITEM<tab>TITLE<tab>ABSTRACT), *.lmdb"

    def recognise(self) -> str | None:
        if not has_files(self.folder, "*users*.tsv"):
            return None
        return next((f"*users*.tsv, {items}" for items in ITEMS if has_files(self.folder, items)), None)

    def inputs(self) -> Inputs:
        items, users = required_file(self.folder, *ITEMS), required_file(self.folder, "*users*.tsv")
        num_columns = first_line(items).count("\t") + 1
        if num_columns > len(COLUMNS):
            raise DataError(f"{items}: line 1 has {num_columns} values; an item, its title and its abstract are read")
        if num_columns == 1:
            ids = "SELECT __line__, item_id, CAST(NULL AS VARCHAR) AS text FROM items"
            items = queried(ids, self.work / "items.parquet", {"items": (items, COLUMNS[:1], "\t")}, self.encoding)
        return Inputs(
            items,
            users,
            {},
            TABS.model_copy(update={"columns": COLUMNS[:num_columns]}) if num_columns > 1 else TextFormat(),
            TABS.model_copy(update={"columns": ("user_id", "item_ids")}),
            pictures_in(self.folder, "*images", "*covers", "*cover"),
        )
