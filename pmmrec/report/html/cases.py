"""Show the history of sample users, their next item, and the list of each system."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pmmrec.data.domain import Domain
from pmmrec.data.splits import Split
from pmmrec.errors import DataError
from pmmrec.evaluation.ranking import Seen
from pmmrec.report.html.encoded_domain import EncodedDomain, SampledHistories
from pmmrec.report.html.maps import sampled
from pmmrec.report.html.pictures import thumbnail
from pmmrec.report.ranks import read_ranked

HISTORY_SHOWN = 8
LETTERS_SHOWN = 90


@dataclass(frozen=True)
class ItemCard:
    """An item with its text and picture."""

    item_id: str
    text: str | None
    picture: str | None  # a data URI


@dataclass(frozen=True)
class Shown:
    """An item at one position of a list."""

    place: int
    card: ItemCard
    is_target: bool


@dataclass(frozen=True)
class SystemList:
    """The list of one system for a user."""

    system: str
    shown: list[Shown]
    rank: int  # rank of the target among all candidates, from ranks.parquet; 0: a miss

    @property
    def is_hit(self) -> bool:
        return any(one.is_target for one in self.shown)


@dataclass(frozen=True)
class Case:
    """A user with history, next item, and the list of each system (NineRec, figure 9)."""

    user_id: str
    query: int  # row in the holdout
    num_before: int  # length of the history; only its last items are shown
    history: list[ItemCard]  # oldest first
    target: ItemCard
    lists: list[SystemList] = field(default_factory=list)


def sample_cases(split: Split, ranks: Path, num_users: int, seed: int) -> list[Case]:
    """Draw users at random from those that a run ranked; their lists are empty.

    Raises DataError if the ranks are of users that the domain lacks.
    """
    ranked, holdout, domain = read_ranked(ranks), split.holdout("test"), split.domain
    query_of = {domain.user_ids[int(user)].as_py(): place for place, user in enumerate(holdout.user_index)}
    users = [ranked.user_ids[row].as_py() for row in sampled(len(ranked.rank_V), num_users, seed).tolist()]
    unknown = [user for user in users if user not in query_of]
    if unknown:
        raise DataError(f"{ranks}: user {unknown[0]!r} has no test target in {domain.folder}; name the run's domain")
    cases = []
    for user in users:
        query = query_of[user]
        before = holdout.history(query)
        history = item_cards(domain, before[-HISTORY_SHOWN:].tolist())
        (target,) = item_cards(domain, [int(holdout.target[query])])
        cases.append(Case(user, query, len(before), history, target))
    return cases


def add_lists(cases: Sequence[Case], encoded: EncodedDomain, system: str, ranks: Path, k: int, seen: Seen) -> None:
    """Add the list of a system to every case, with the ranks of its run.

    Raises DataError if the ranks are of other users or targets than those of the domain.
    """
    ranked, holdout, domain = read_ranked(ranks), encoded.split.holdout("test"), encoded.domain
    row_of = {user: row for row, user in enumerate(ranked.user_ids.to_pylist())}
    lists = encoded.best(SampledHistories.of([holdout.history(case.query) for case in cases]), k, seen)
    for case, best in zip(cases, lists, strict=True):
        row, target = row_of.get(case.user_id), int(holdout.target[case.query])
        if row is None or domain.item_ids[target].as_py() != ranked.item_ids[row].as_py():
            raise DataError(
                f"{ranks}: another target for user {case.user_id!r} than in {domain.folder}; name the run's domain"
            )
        places = enumerate(zip(best, item_cards(domain, best), strict=True), start=1)
        shown = [Shown(place, card, item == target) for place, (item, card) in places]
        case.lists.append(SystemList(system, shown, int(ranked.rank_V[row])))


def item_cards(domain: Domain, rows: Sequence[int]) -> list[ItemCard]:
    """Id, text and picture of items; long texts are cut."""
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
