"""The data sets of PixelRec."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pmmrec.data.importers.kinds import Inputs, Kind, first_line, importers, pictures_in
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

LOG, INFO = {"item_id", "user_id", "timestamp"}, {"item_id", "title"}


class PixelRecConfig(PartConfig):
    """PixelRec has no settings."""

    type: Literal["pixelrec"] = "pixelrec"


@importers.register("pixelrec", PixelRecConfig)
class PixelRec(Kind):
    """PixelRec: pairs with times; titles, with tags and descriptions as columns; covers.

    Its files are known by their headers, in the folder or in `interactions/` and `item_info/` below it.
    """

    expects = "a csv with item_id,user_id,timestamp, one with item_id,...,title,tag, and cover/ if there is one"

    def recognise(self) -> str | None:
        logs, infos = _tables(self.folder)
        return f"the headers of {logs[0].name} and {infos[0].name}" if logs and infos else None

    def inputs(self) -> Inputs:
        logs, infos = _tables(self.folder)
        if len(logs) != 1 or len(infos) != 1:
            found = ", ".join(path.name for path in (*logs, *infos))
            raise DataError(f"{self.folder}: several tables of interactions or of items: {found}; leave one of each")
        return Inputs(infos[0], logs[0], {"text": "title"}, images=pictures_in(self.folder, "cover*", "images"))


def _tables(folder: Path) -> tuple[list[Path], list[Path]]:
    """Tables of interactions, and of items, by their headers."""
    logs, infos = [], []
    for path in sorted([*folder.glob("*.csv"), *folder.glob("interaction*/*.csv"), *folder.glob("item_info*/*.csv")]):
        names = set(first_line(path).split(","))
        if names >= LOG and "title" not in names:
            logs.append(path)
        elif names >= INFO and names & {"tag", "view_number"}:
            infos.append(path)
    return logs, infos
