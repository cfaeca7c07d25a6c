"""H&M Personalized Fashion Recommendations, as Kaggle gives it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pmmrec.data.importers.kinds import Inputs, Kind, first_folder, has_files, importers, queried, required_file
from pmmrec.data.importers.unpacking import COMPRESSIONS, unpacked
from pmmrec.settings import PartConfig

TRANSACTIONS = ("t_dat", "customer_id", "article_id", "price", "sales_channel_id")
DISTINCT = """SELECT item_id, CAST(NULL AS VARCHAR) AS text FROM (SELECT article_id AS item_id, min(row) AS place
              FROM transactions GROUP BY article_id) WHERE item_id <> 'article_id' ORDER BY place"""


class HMConfig(PartConfig):
    """H&M has no settings."""

    type: Literal["hm"] = "hm"


@importers.register("hm", HMConfig)
class HM(Kind):
    """H&M: purchases by day, articles with a name, type, colour and description, and pictures in folders by digits.

    Where `articles.csv` has no row, items are the articles of the transactions, with pictures alone.
    """

    expects = "transactions_train.csv, articles.csv, and images/ if there are any"

    def recognise(self) -> str | None:
        names = ("transactions_train.csv", "articles.csv")
        return ", ".join(names) if has_files(self.folder, *names) else None

    def inputs(self) -> Inputs:
        purchases, articles = (
            required_file(self.folder, "transactions_train.csv"),
            required_file(self.folder, "articles.csv"),
        )
        columns = {"user_id": "customer_id", "item_id": "article_id", "timestamp": "t_dat"}
        images = first_folder(self.folder, "images")
        if not _has_rows(articles):
            items = queried(
                DISTINCT,
                self.work / "articles.parquet",
                {"transactions": (purchases, TRANSACTIONS, ",")},
                self.encoding,
            )
            return Inputs(items, purchases, columns, images=images)
        columns["text"] = "{prod_name}. {product_type_name?}. {colour_group_name?}. {detail_desc?}"
        return Inputs(articles, purchases, columns, images=images)


def _has_rows(articles: Path) -> bool:
    """Whether anything follows the header."""
    return b"\n" in next(unpacked(articles, COMPRESSIONS.get(articles.suffix)), b"").strip()
