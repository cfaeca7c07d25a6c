"""Show the history of sample users, their next item, and the list of each system."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pmmrec.data.domain import Domain
from pmmrec.data.splits import Holdout, Split
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
class ShownCard:
    """An item at one position of a list."""

    place: int
    card: ItemCard
    is_target: bool


@dataclass(frozen=True)
class SystemList:
    """The list of one system for a user."""

    system: str
    shown: list[ShownCard]
    rank: int  # rank of the target among all candidates, from ranks.parquet; 0: a miss

    @property
    def is_hit(self) -> bool:
        return any(one.is_target for one in self.shown)


@dataclass(frozen=True)
class Case:
    """A user with history, one held-out item, and the list of each system (NineRec, figure 9)."""

    user_id: str
    query: int  # row in the holdout
    num_before: int  # length of the history; only its last items are shown
    history: list[ItemCard]  # oldest first
    target: ItemCard
    target_row: int
    lists: list[SystemList] = field(default_factory=list)


def sample_cases(split: Split, ranks: Path, num_users: int, seed: int) -> list[Case]:
    """Draw targets at random from those that a run ranked, with their users; their lists are empty.

    Raises DataError if the ranks are of users or targets that the domain lacks.
    """
    ranked, holdout, domain = read_ranked(ranks), split.holdout("test"), split.domain
    query_of: dict[str, list[int]] = {}
    for place, user in enumerate(holdout.user_index.tolist()):
        query_of.setdefault(domain.user_ids[user].as_py(), []).append(place)
    rows = sampled(len(ranked.rank_V), num_users, seed)
    users, items = ([ids[row].as_py() for row in rows.tolist()] for ids in (ranked.user_ids, ranked.item_ids))
    unknown = [user for user in users if user not in query_of]
    if unknown:
        raise DataError(f"{ranks}: user {unknown[0]!r} has no test target in {domain.folder}; name the run's domain")
    cases = []
    for user, target_row in zip(users, domain.rows_of(items).tolist(), strict=True):
        query = next((one for one in query_of[user] if target_row in holdout.targets(one)), None)
        if query is None:
            raise _other_target(ranks, user, domain)
        before = holdout.history(query)
        history = item_cards(domain, before[-HISTORY_SHOWN:].tolist())
        (target,) = item_cards(domain, [target_row])
        cases.append(Case(user, query, len(before), history, target, target_row))
    return cases


def _histories(holdout: Holdout, cases: Sequence[Case]) -> tuple[list[int], list[NDArray[np.int32]]]:
    """The users of cases, and what they did before the targets."""
    users = [int(holdout.user_index[case.query]) for case in cases]
    return users, [holdout.history(case.query) for case in cases]


def add_lists(cases: Sequence[Case], encoded: EncodedDomain, system: str, ranks: Path, k: int, seen: Seen) -> None:
    """Add the list of a system to every case, with the ranks of its run.

    Raises DataError if the ranks are of other users or targets than those of the domain.
    """
    ranked, holdout, domain = read_ranked(ranks), encoded.split.holdout("test"), encoded.domain
    ids = zip(ranked.user_ids.to_pylist(), ranked.item_ids.to_pylist(), strict=True)
    row_of = {user_and_item: row for row, user_and_item in enumerate(ids)}
    lists = encoded.best(SampledHistories.of(*_histories(holdout, cases)), k, seen)
    for case, best in zip(cases, lists, strict=True):
        row = row_of.get((case.user_id, case.target.item_id))
        if row is None:
            raise _other_target(ranks, case.user_id, domain)
        places = enumerate(zip(best, item_cards(domain, best), strict=True), start=1)
        shown = [ShownCard(place, card, item == case.target_row) for place, (item, card) in places]
        case.lists.append(SystemList(system, shown, int(ranked.rank_V[row])))


def _other_target(ranks: Path, user: str, domain: Domain) -> DataError:
    return DataError(f"{ranks}: another target for user {user!r} than in {domain.folder}; name the run's domain")


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
