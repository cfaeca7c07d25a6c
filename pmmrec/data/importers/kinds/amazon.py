"""The Amazon review data of 2014, 2018 and 2023."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pmmrec.data.importers.kinds import Inputs, Kind, first_line, has_files, importers, matching, required_file
from pmmrec.data.importers.text_format import TextFormat
from pmmrec.settings import PartConfig

OF_REVIEWS = {"item_id": "asin", "user_id": "reviewerID", "timestamp": "unixReviewTime", "rating": "overall"}


class AmazonConfig(PartConfig):
    """Amazon has no settings: the release is known by its files."""

    type: Literal["amazon"] = "amazon"


@importers.register("amazon", AmazonConfig)
class Amazon(Kind):
    """Amazon reviews: one category, its metadata and either its reviews or its ratings.

    Texts are a title and a brand or store. Releases before 2023 repeat items in their metadata; the first row counts.
    """

    expects = "meta_CATEGORY.json[l][.gz], with reviews (CATEGORY.json[l][.gz]) or ratings (CATEGORY.csv)"

    def recognise(self) -> str | None:
        for meta in (*matching(self.folder, "meta_*.jsonl"), *matching(self.folder, "meta_*.json")):
            if any(has_files(self.folder, pattern) for pattern in _patterns(meta)):
                return f"{meta.name} and its reviews or ratings"
        return None

    def inputs(self) -> Inputs:
        meta = required_file(self.folder, "meta_*.jsonl", "meta_*.json")
        log = required_file(self.folder, *_patterns(meta))
        is_2023 = '"parent_asin"' in first_line(meta)
        text = {"text": "{title}. {store?}" if is_2023 else "{title}. {brand?}"}
        if ".csv" in log.suffixes:
            return _of_ratings(meta, log, text)
        columns = {"item_id": "parent_asin"} if is_2023 else OF_REVIEWS
        return Inputs(meta, log, {**columns, **text}, repeated_items="first")


def _patterns(meta: Path) -> tuple[str, ...]:
    """Patterns of the files that go with metadata."""
    category = meta.name.removeprefix("meta_").split(".")[0]
    names = (f"{category}_5", category, f"reviews_{category}_5", f"reviews_{category}")
    reviews = [f"{name}{suffix}" for name in names for suffix in (".jsonl", ".json")]
    return (*reviews, f"ratings_{category}.csv", f"{category}.csv")


def _of_ratings(meta: Path, log: Path, text: dict[str, str]) -> Inputs:
    """Ratings alone: with a header in 2023; the user comes first in 2014, the item in 2018."""
    if "parent_asin" in first_line(log):
        return Inputs(meta, log, {"item_id": "parent_asin", **text}, repeated_items="first")
    order = ("user_id", "item_id") if log.name.startswith("ratings_") else ("item_id", "user_id")
    columns = TextFormat(columns=(*order, "rating", "timestamp"))
    return Inputs(meta, log, {"items.item_id": "asin", **text}, TextFormat(), columns, repeated_items="first")
