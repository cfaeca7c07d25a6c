"""The data sets of MicroLens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pmmrec.data.importers.kinds import (
    TABS,
    Inputs,
    Kind,
    converted,
    has_files,
    importers,
    lines_of,
    optional_file,
    pictures_in,
    required_file,
)
from pmmrec.data.importers.records import LINE
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

TITLES = ("*title_en.csv", "*titles.csv", "*title.csv")


class MicroLensConfig(PartConfig):
    """MicroLens has no settings."""

    type: Literal["microlens"] = "microlens"


@importers.register("microlens", MicroLensConfig)
class MicroLens(Kind):
    """MicroLens: pairs with times, or sequences; titles, which may hold commas without quotes; covers."""

    expects = "*_title_en.csv or *_titles.csv, *_pairs.csv or *_pairs.tsv, and *_covers/ if there is one"

    def recognise(self) -> str | None:
        for titles in TITLES:
            for log in ("*_pairs.csv", "*_pairs.tsv"):
                if has_files(self.folder, titles, log):
                    return f"{titles}, {log}"
        return None

    def inputs(self) -> Inputs:
        titles = required_file(self.folder, *TITLES)
        items = converted(_titles(titles, self.encoding), self.work / "titles.parquet", titles)
        covers = pictures_in(self.folder, "*covers*", "*cover*")
        pairs = optional_file(self.folder, "*_pairs.csv")
        if pairs is not None:
            return Inputs(items, pairs, {"user_id": "user", "interactions.item_id": "item"}, images=covers)
        listed = TABS.model_copy(update={"columns": ("user_id", "item_ids")})
        return Inputs(items, required_file(self.folder, "*_pairs.tsv"), interactions_format=listed, images=covers)


def _titles(path: Path, encoding: str | None) -> Iterator[dict[str, str]]:
    """`ITEM,TITLE` of each line; a title that is quoted as a whole is read as csv, any other as it stands."""
    for number, line in lines_of(path, encoding):
        item_id, comma, title = line.partition(",")
        if not line or (number == 1 and item_id in ("item", "video_id", "item_id")):
            continue
        if not comma:
            raise DataError(f"{path}: line {number}: no comma after the item: {line[:60]!r}")
        is_quoted = len(title) > 1 and title.startswith('"') and title.endswith('"')
        yield {LINE: str(number), "item_id": item_id, "text": title[1:-1].replace('""', '"') if is_quoted else title}
