"""MIND, the Microsoft news data set."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from pmmrec.data.importers.kinds import TABS, Inputs, Kind, has_files, importers, queried, required_file
from pmmrec.settings import PartConfig

NEWS = ("item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities")
BEHAVIORS = ("impression", "user_id", "moment", "history", "shown")
TIMED = "SELECT *, strptime(trim(moment), '%m/%d/%Y %I:%M:%S %p') AS time FROM behaviors"
# A history has no times and is the same in all impressions of a user: it comes before the first of them.
INTERACTIONS = f"""
    WITH timed AS ({TIMED}),
    before AS (SELECT __line__, user_id, time, row, string_split(trim(history), ' ') AS items FROM timed
               WHERE {{has_history}} AND trim(history) <> ''
               QUALIFY row_number() OVER (PARTITION BY user_id ORDER BY time, row) = 1),
    clicked AS (SELECT __line__, user_id, time, row,
                [left(one, -2) for one in string_split(trim(shown), ' ') if ends_with(one, '-1')] AS items FROM timed),
    listed AS (SELECT 0 AS part, * FROM before UNION ALL SELECT 1 AS part, * FROM clicked)
    SELECT __line__, user_id, item_id, time AS timestamp FROM (
      SELECT part, row, __line__, user_id, time, unnest(items) AS item_id, generate_subscripts(items, 1) AS place
      FROM listed)
    ORDER BY time, part, row, place
"""  # noqa: S608  no value of users


class MINDConfig(PartConfig):
    """What becomes an interaction."""

    type: Literal["mind"] = "mind"
    history: bool = Field(True, description="Whether a user's history comes before the clicks; False: clicks alone.")


@importers.register("mind", MINDConfig)
class MIND(Kind):
    """MIND: the history of a user, then the clicked news of impressions by time.

    The history has no times; it gets that of the user's first impression. Texts are titles; `abstract` is a column.
    """

    expects = "behaviors.tsv, news.tsv (of one part: train, dev or test)"

    def __init__(self, config: MINDConfig, folder: Path, work: Path) -> None:
        super().__init__(config, folder, work)
        self.history = config.history

    def recognise(self) -> str | None:
        return "behaviors.tsv, news.tsv" if has_files(self.folder, "behaviors.tsv", "news.tsv") else None

    def inputs(self) -> Inputs:
        behaviors, news = required_file(self.folder, "behaviors.tsv"), required_file(self.folder, "news.tsv")
        query = INTERACTIONS.format(has_history=str(self.history).lower())
        clicks = queried(
            query, self.work / "clicks.parquet", {"behaviors": (behaviors, BEHAVIORS, "\t")}, self.encoding
        )
        return Inputs(news, clicks, {"text": "title"}, TABS.model_copy(update={"columns": NEWS}))
