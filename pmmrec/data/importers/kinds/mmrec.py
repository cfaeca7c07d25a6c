"""The data sets of MMRec."""

from __future__ import annotations

from typing import Literal

from pmmrec.data.importers.kinds import TABS, Inputs, Kind, first_line, importers, matching, required_file
from pmmrec.settings import PartConfig


class MMRecConfig(PartConfig):
    """MMRec has no settings."""

    type: Literal["mmrec"] = "mmrec"


@importers.register("mmrec", MMRecConfig)
class MMRec(Kind):
    """MMRec: numbered users and items of an Amazon category, with ratings and times.

    Its files hold features, but no texts or pictures of items: name a table with both, `--items FILE`, whose item_id is
    MMRec's number. `pmmrec data features DOMAIN --from FILE` stores features afterwards.
    """

    expects = "*.inter with userID, itemID, rating, timestamp; and --items FILE with item_id and text"

    def recognise(self) -> str | None:
        logs = [log for log in matching(self.folder, "*.inter") if "itemID" in first_line(log).split("\t")]
        return f"the header of {logs[0].name}" if logs else None

    def inputs(self) -> Inputs:
        columns = {"user_id": "userID", "interactions.item_id": "itemID"}
        return Inputs(None, required_file(self.folder, "*.inter"), columns, interactions_format=TABS)
