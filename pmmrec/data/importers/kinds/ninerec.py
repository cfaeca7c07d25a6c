"""The data sets of NineRec."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pmmrec.data.importers.kinds import (
    TABS,
    Inputs,
    Kind,
    first_line,
    has_files,
    importers,
    optional_file,
    pictures_in,
    required_file,
)
from pmmrec.data.importers.text_format import TextFormat
from pmmrec.settings import PartConfig


class NineRecConfig(PartConfig):
    """Which of the two titles is read."""

    type: Literal["ninerec"] = "ninerec"
    language: Literal["en", "zh"] = Field("en", description="Of the titles; the other one is kept as a column.")


@importers.register("ninerec", NineRecConfig)
class NineRec(Kind):
    """NineRec: pairs with times where there are such, sequences otherwise; titles in Chinese and English; covers.

    Columns of pairs are told apart by their ids, which begin with u and v: released files have both orders.
    """

    expects = "*_item.csv, *_pair.csv or *_behaviour.tsv, and *_cover/ or *.lmdb if there is one"

    def __init__(self, config: NineRecConfig, folder: Path, work: Path) -> None:
        super().__init__(config, folder, work)
        self.language = config.language

    def recognise(self) -> str | None:
        for log in ("*_pair.csv", "*_behaviour.tsv"):
            if has_files(self.folder, "*_item.csv", log):
                return f"*_item.csv, {log}"
        return None

    def inputs(self) -> Inputs:
        items = required_file(self.folder, "*_item.csv")
        titles = TextFormat(delimiter=",", columns=("item_id", "zh", "en"))
        covers = pictures_in(self.folder, "*_cover")
        pairs = optional_file(self.folder, "*_pair.csv")
        values = first_line(pairs).split(",") if pairs is not None else []
        if pairs is None or len(values) < 3:
            log = required_file(self.folder, "*_behaviour.tsv")
            listed = TABS.model_copy(update={"columns": ("user_id", "item_ids")})
            return Inputs(items, log, {"text": self.language}, titles, listed, covers)
        order = ("item_id", "user_id") if values[0].startswith("v") else ("user_id", "item_id")
        timed = TextFormat(delimiter=",", columns=(*order, "timestamp"))
        return Inputs(items, pairs, {"text": self.language}, titles, timed, covers)
