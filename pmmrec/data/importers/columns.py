"""Suggest which column of a table is meant by a missing one, by the names that public data sets use."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence

# Letters and digits only, in lower case, likely names first.
ALIASES: Mapping[str, Sequence[str]] = {
    "item_id": (
        *("item", "iid", "movieid", "asin", "parentasin", "articleid", "productid", "sku", "newsid", "videoid"),
        *("trackid", "songid", "musicid", "artistid", "bookid", "isbn", "gmapid", "businessid", "recipeid", "appid"),
        *("adid", "postid", "docid", "pid", "nid", "vid", "mid", "movie", "article", "product", "news", "video", "id"),
    ),
    "item_ids": (
        *("items", "itemidlist", "itemlist", "itemseq", "itemsequence", "sequence", "seq", "history", "itemhistory"),
        *("clickhistory", "clickeditems", "purchaseditems", "basket", "movieids", "products", "productids"),
    ),
    "user_id": (
        *("user", "uid", "customerid", "customer", "reviewerid", "reviewer", "sessionid", "session", "visitorid"),
        *("visitor", "memberid", "member", "accountid", "account", "clientid", "client", "buyerid", "personid"),
        *("profileid", "deviceid", "readerid", "listenerid", "viewerid", "username"),
    ),
    "timestamp": (
        *("ts", "time", "date", "datetime", "unixreviewtime", "reviewtime", "tdat", "eventtime", "eventtimestamp"),
        *("createdat", "unixtime", "unixtimestamp", "epoch", "clicktime", "purchasedate", "orderdate", "day", "when"),
    ),
    "text": (
        *("title", "name", "productname", "prodname", "producttitle", "itemname", "headline", "caption"),
        *("description", "detaildesc", "desc", "abstract", "summary"),
    ),
}
# Patterns of other likely names.
LIKELY: Mapping[str, str] = {
    "item_id": r".*(id|sku|code)",
    "user_id": r".*(user|customer|member|session|visitor).*",
    "timestamp": r".*(time|date).*",
    "text": r".*(title|name|desc|text).*",
}
MAX_SHOWN = 3


def columns_like(name: str, found: Sequence[str]) -> list[str]:
    """Columns among `found` that may be meant by `name`, at most three; none that is known by another meaning."""
    plain = {column: re.sub(r"[\W_]", "", column.lower()) for column in found}
    others = [other for other in ALIASES if other != name]
    taken = {*others, *(alias for other in others for alias in (other.replace("_", ""), *ALIASES[other]))}
    free = {column: word for column, word in plain.items() if column not in others and word not in taken}
    wanted = name.replace("_", "")
    same = [column for column, word in free.items() if word == wanted]
    known = [column for alias in ALIASES.get(name, ()) for column, word in free.items() if word == alias]
    close = [column for column, word in free.items() if difflib.SequenceMatcher(None, wanted, word).ratio() >= 0.75]
    likely = [column for column, word in free.items() if re.fullmatch(LIKELY.get(name, ""), word)]
    return (same or known or close or likely)[:MAX_SHOWN]


def hint(missing: Sequence[str], found: Sequence[str]) -> str:
    """What to do about missing columns, for the end of a message."""
    like = {name: " or ".join(map(repr, columns_like(name, found))) for name in missing}
    if len(missing) == 1:
        near = like[missing[0]]
        return f"is it {near}? Rename it" if near else "add it, or rename the column that holds it"
    renamed = ", ".join(f"{near} to {name!r}" for name, near in like.items() if near)
    added = ", ".join(repr(name) for name, near in like.items() if not near)
    advice = [f"rename {renamed}"] if renamed else []
    return "; ".join([*advice, f"add {added}, or rename the column that holds it"] if added else advice)
