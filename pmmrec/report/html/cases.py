"""What would a model show some users, and was it what they took next?"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pmmrec.data.domain import Domain
from pmmrec.errors import DataError
from pmmrec.evaluation.ranking import Seen
from pmmrec.report.html.maps import sampled
from pmmrec.report.html.pictures import thumbnail
from pmmrec.report.html.view import Histories, View
from pmmrec.report.ranks import read_ranked

HISTORY_SHOWN = 8
LETTERS_SHOWN = 90


@dataclass(frozen=True)
class ItemCard:
    """An item as people see it."""

    item_id: str
    text: str | None
    picture: str | None  # a data URI


@dataclass(frozen=True)
class Shown:
    """An item on a place of a user's list."""

    place: int
    card: ItemCard
    is_target: bool


@dataclass(frozen=True)
class Case:
    """One user: what came before, what the model shows, what was taken next (NineRec, figure 9)."""

    user_id: str
    num_before: int  # items of the history, of which the last few are shown
    history: list[ItemCard]  # oldest first
    shown: list[Shown]
    target: ItemCard
    rank: int  # place of the target among all candidates, from ranks.parquet; 0: it was none

    @property
    def is_hit(self) -> bool:
        return any(one.is_target for one in self.shown)


def sample_cases(view: View, ranks: Path, num_users: int, k: int, seen: Seen, seed: int) -> list[Case]:
    """Users drawn at random from those that were ranked, with the ranks that the run kept.

    Raises DataError where the ranks are of users or targets that the domain does not have.
    """
    ranked, holdout, domain = read_ranked(ranks), view.split.holdout("test"), view.domain
    query_of = {domain.user_ids[int(user)].as_py(): place for place, user in enumerate(holdout.user_index)}
    chosen = sampled(len(ranked.rank_V), num_users, seed).tolist()
    users = [ranked.user_ids[row].as_py() for row in chosen]
    unknown = [user for user in users if user not in query_of]
    if unknown:
        raise DataError(f"{ranks}: user {unknown[0]!r} has no test target in {domain.folder}; name the run's domain")
    queries = [query_of[user] for user in users]
    histories = Histories.of([holdout.history(query) for query in queries])
    lists = view.best(histories, k, seen)
    cases = []
    for row, user, query, best in zip(chosen, users, queries, lists, strict=True):
        target = int(holdout.target[query])
        if domain.item_ids[target].as_py() != ranked.item_ids[row].as_py():
            raise DataError(f"{ranks}: another target for user {user!r} than in {domain.folder}; name the run's domain")
        before = holdout.history(query)
        places = enumerate(zip(best, item_cards(domain, best), strict=True), start=1)
        cases.append(
            Case(
                user_id=user,
                num_before=len(before),
                history=item_cards(domain, before[-HISTORY_SHOWN:].tolist()),
                shown=[Shown(place, card, item == target) for place, (item, card) in places],
                target=item_cards(domain, [target])[0],
                rank=int(ranked.rank_V[row]),
            )
        )
    return cases


def item_cards(domain: Domain, rows: Sequence[int]) -> list[ItemCard]:
    """Id, text and picture of items; a text is cut where it would not fit."""
    index = np.asarray(rows, dtype=np.int64)
    ids = [domain.item_ids[int(row)].as_py() for row in rows]
    texts = [_cut(text) for text in domain.texts(index)]
    pictures = [thumbnail(jpeg) for jpeg in domain.jpegs(index)]
    return [ItemCard(*card) for card in zip(ids, texts, pictures, strict=True)]


def _cut(text: str | None) -> str | None:
    if text is None:
        return None
    text = "".join(
        "\ufffd" if unicodedata.category(letter) == "Cc" and letter not in "\t\n" else letter for letter in text
    )
    if len(text) <= LETTERS_SHOWN:
        return text
    return text[: LETTERS_SHOWN - 1].rstrip() + "…"
