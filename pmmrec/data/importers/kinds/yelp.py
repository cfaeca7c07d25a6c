"""The Yelp open data set."""

from __future__ import annotations

from typing import Literal

from pmmrec.data.importers.kinds import Inputs, Kind, has_files, importers, required_file
from pmmrec.settings import PartConfig

FILES = ("yelp_academic_dataset_review.json", "yelp_academic_dataset_business.json")


class YelpConfig(PartConfig):
    """Yelp has no settings."""

    type: Literal["yelp"] = "yelp"


@importers.register("yelp", YelpConfig)
class Yelp(Kind):
    """Yelp: reviews with stars and times, and businesses. Texts are a name, categories and the city."""

    expects = "yelp_academic_dataset_review.json, yelp_academic_dataset_business.json"

    def recognise(self) -> str | None:
        return ", ".join(FILES) if has_files(self.folder, *FILES) else None

    def inputs(self) -> Inputs:
        reviews, businesses = (required_file(self.folder, name) for name in FILES)
        columns = {"item_id": "business_id", "timestamp": "date", "rating": "stars"}
        columns["text"] = "{name}. {categories?}. {city?}"
        return Inputs(businesses, reviews, columns)
