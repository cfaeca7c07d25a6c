"""The Steam data set of UCSD."""

from __future__ import annotations

from typing import Literal

from pmmrec.data.importers.kinds import Inputs, Kind, has_files, importers, required_file
from pmmrec.settings import PartConfig

FILES = ("steam_reviews.json", "steam_games.json")


class SteamConfig(PartConfig):
    """Steam has no settings."""

    type: Literal["steam"] = "steam"


@importers.register("steam", SteamConfig)
class Steam(Kind):
    """Steam: reviews by day and games, whose lines are Python literals. Texts are a name, genres and tags."""

    expects = "steam_reviews.json[.gz], steam_games.json[.gz]"

    def recognise(self) -> str | None:
        return ", ".join(FILES) if has_files(self.folder, *FILES) else None

    def inputs(self) -> Inputs:
        reviews, games = (required_file(self.folder, name) for name in FILES)
        columns = {"user_id": "username", "interactions.item_id": "product_id", "timestamp": "date"}
        columns |= {"items.item_id": "id", "text": "{app_name}. {genres?}. {tags?}"}
        return Inputs(games, reviews, columns, repeated_items="first")
