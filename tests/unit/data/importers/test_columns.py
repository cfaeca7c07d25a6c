"""Hints suggest columns by the names of public data sets, and never a column with another meaning."""

from __future__ import annotations

import pytest

from pmmrec.data.importers.columns import ALIASES, columns_like, hint
from pmmrec.errors import DataError

MOVIELENS = ["movieId", "title", "genres"]
ITEMS = {
    "MovieLens": (MOVIELENS, "movieId", "title"),
    "Amazon 2018": (["asin", "title", "brand", "price"], "asin", "title"),
    "Amazon 2023": (["main_category", "title", "parent_asin"], "parent_asin", "title"),
    "H&M": (["article_id", "product_code", "prod_name", "detail_desc"], "article_id", "prod_name"),
    "MIND": (["news_id", "category", "headline", "abstract"], "news_id", "headline"),
    "a shop": (["SKU", "Name"], "SKU", "Name"),
    "hotels": (["hotel_id", "hotel name"], "hotel_id", "hotel name"),
    "a typo": (["itme_id", "txt"], "itme_id", "txt"),
    "another case": (["Item_ID", "Text"], "Item_ID", "Text"),
    "spaces": ([" item_id", "text "], " item_id", "text "),
}
INTERACTIONS = {
    "MovieLens": (["userId", "movieId", "rating", "timestamp"], "userId", "movieId", None),
    "Amazon 2014": (["reviewerID", "asin", "overall", "unixReviewTime"], "reviewerID", "asin", "unixReviewTime"),
    "H&M": (["t_dat", "customer_id", "article_id", "price"], "customer_id", "article_id", "t_dat"),
    "sessions": (["session", "ts", "aid", "type"], "session", "aid", "ts"),
    "a shop": (["Customer ID", "Stock Code", "InvoiceDate"], "Customer ID", "Stock Code", "InvoiceDate"),
    "short": (["uid", "iid", "date"], "uid", "iid", "date"),
}  # fmt: skip


@pytest.mark.parametrize("name", ITEMS)
def test_items_of_public_data_sets_are_understood(name: str) -> None:
    found, item_id, text = ITEMS[name]
    assert columns_like("item_id", found)[0] == item_id
    assert columns_like("text", found)[0] == text
    assert text not in columns_like("item_id", found)
    assert item_id not in columns_like("text", found)


@pytest.mark.parametrize("name", INTERACTIONS)
def test_interactions_of_public_data_sets_are_understood(name: str) -> None:
    found, user_id, item_id, timestamp = INTERACTIONS[name]
    assert columns_like("user_id", found) == [user_id]
    assert columns_like("item_id", found)[0] == item_id
    assert user_id not in columns_like("item_id", found)
    if timestamp is not None:
        assert columns_like("timestamp", found) == [timestamp]


def test_no_alias_has_two_meanings_and_each_is_written_plainly() -> None:
    words = [word for aliases in ALIASES.values() for word in aliases]
    assert len(words) == len(set(words))
    assert all(word.isalnum() and word == word.lower() for word in words)


@pytest.mark.parametrize("other", ["text", "user_id", "timestamp", "title", "userId", "unixReviewTime", "date"])
def test_a_column_with_another_meaning_is_never_named(other: str) -> None:
    assert columns_like("item_id", [other]) == []
    assert hint(["item_id"], [other]) == "add it, or rename the column that holds it"


def test_several_candidates_are_all_named() -> None:
    assert hint(["item_id"], ["parent_asin", "asin"]) == "is it 'asin' or 'parent_asin'? Rename it"


def test_all_missing_columns_are_named_in_one_error(shop) -> None:
    shop.items.write_text("movieId,title,genres\n1,Alpha (1990),Drama\n")
    with pytest.raises(DataError) as told:
        shop.run()
    assert str(told.value) == (
        f"{shop.items}: no columns 'item_id', 'text', found 'movieId', 'title', 'genres'; rename 'movieId' to "
        "'item_id', 'title' to 'text'; or import with --map item_id=movieId --map text=title"
    )
    shop.items.write_text("movieId,genres\n1,Drama\n")
    with pytest.raises(DataError, match="; rename 'movieId' to 'item_id'; add 'text', or rename the column that holds"):
        shop.run()


def test_a_missing_column_of_interactions_is_named(shop) -> None:
    shop.interactions.write_text("userId,item_id\nu,a\n")
    with pytest.raises(DataError, match=r"no column 'user_id', found 'userId', 'item_id'; is it 'userId'\? Rename it"):
        shop.run()


def test_a_column_that_may_hold_the_times_is_named(shop) -> None:
    shop.interactions.write_text("user_id,item_id,unixReviewTime\nu,a,5\n")
    note = "times: no column 'timestamp', so the order of rows is kept; is it 'unixReviewTime'?"
    assert shop.run().info.summary.notes[0] == f"{note} Import with --map timestamp=unixReviewTime"
