"""Splits: which interactions of a domain train a model, and which are held out for validation and for the test."""
# Q queries, T targets of all queries, N items of the domain. B users of one stretch, H items of their sequences.

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pmmrec.context import InteractionGraph
from pmmrec.data.domain import Domain
from pmmrec.data.randomness import Purpose, generator
from pmmrec.data.sequences import Stretch
from pmmrec.data.user_sample import UserSample, UserSampleConfig
from pmmrec.errors import DataError
from pmmrec.family import Family
from pmmrec.settings import PartConfig

HoldoutName = Literal["validation", "test"]
MAX_SHOWN = 3


class SplitPart(IntEnum):
    """The part of a split that an interaction belongs to."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


HISTORY_ONLY = len(SplitPart)  # beside these parts: of users who do not train; queries know it, nothing learns it
HELD_OUT: dict[HoldoutName, SplitPart] = {"validation": SplitPart.VALIDATION, "test": SplitPart.TEST}


def _no_users() -> NDArray[np.int64]:
    return np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class Holdout:
    """The queries of validation or of the test: for each user the held-out items, and the items that are known."""

    name: HoldoutName
    user_index: NDArray[np.int64]  # (Q,) users of the domain, in order
    target_offsets: NDArray[np.int64]  # (Q + 1,)
    target: NDArray[np.int64]  # (T,) item rows, flat; each query has one or more, all different
    history_offsets: NDArray[np.int64]  # (Q + 1,)
    history_items: NDArray[np.int32]  # item rows, flat and chronological; never empty for a query
    candidate_offsets: NDArray[np.int64] | None = None  # (Q + 1,); None: every item is a candidate
    candidates: NDArray[np.int64] | None = None  # item rows, flat; the targets of a query are among them
    without_history: NDArray[np.int64] = field(default_factory=_no_users)  # users with targets and nothing known

    @property
    def num_queries(self) -> int:
        return len(self.user_index)

    def history(self, query: int) -> NDArray[np.int32]:
        """Known item rows of a query, oldest first."""
        return self.history_items[self.history_offsets[query] : self.history_offsets[query + 1]]

    def targets(self, query: int) -> NDArray[np.int64]:
        """Held-out item rows of a query."""
        return self.target[self.target_offsets[query] : self.target_offsets[query + 1]]


class Split(ABC):
    """Assigns each interaction of a domain to training, validation or test. Counts and training see training only.

    Built as `part_class(config, domain)`. A member implements `parts`; everything else follows from it. Users are read
    one at a time or in stretches; only `train_offsets` and `train_items` hold all of them in memory. `users` are those
    who train, if not all do: what others did is history of their queries, and no baseline counts it.
    """

    reads_times: bool = False  # whether `parts` needs the times of interactions
    ranks_lists: ClassVar[bool] = False  # whether each query has its own list of candidates, and a user several queries
    no_query: ClassVar[str] = "no user has a held-out item"  # why a domain may have no query
    users: UserSample | None = None  # set by `split_of`

    def __init__(self, config: PartConfig, domain: Domain) -> None:
        self.config, self.domain = config, domain
        if self.reads_times and domain.info.time_unit is None:
            raise DataError(
                f"{domain.folder}: data.split: {config.type} needs the time of each interaction, and the domain has "
                "none; import it with a time column, or choose another split"
            )

    @abstractmethod
    def parts(self, stretch: Stretch) -> NDArray[np.uint8]:
        """The `SplitPart` of each interaction of a stretch of users, `(H,)`."""

    def assigned(self, stretch: Stretch) -> NDArray[np.uint8]:
        """The part of each interaction or HISTORY_ONLY, `(H,)`: `parts`, but users outside the sample train nothing."""
        part_H = self.parts(stretch)
        if self.users is None:
            return part_H
        users = slice(stretch.first, stretch.first + len(stretch.offset_B) - 1)
        length_B = np.diff(stretch.offset_B)
        is_trained_H = np.repeat(self.users.is_in_M[users], length_B)
        is_ranked_H = np.repeat(self.users.is_ranked_M[users], length_B)
        is_history_H = np.where(part_H == SplitPart.TRAIN, ~is_trained_H, ~is_ranked_H)
        return np.where(is_history_H, HISTORY_ONLY, part_H).astype(np.uint8)

    @property
    def told(self) -> dict[str, Any]:
        """Its settings and those of the sample of users, as metrics.json holds them."""
        users = {} if self.users is None else {"users": self.users.config.model_dump(mode="json")}
        return {**self.config.model_dump(mode="json"), **users}

    @property
    def about_users(self) -> str | None:
        """A sentence that says who trains, where not all users do."""
        return None if self.users is None else self.users.words(self.domain.name)

    @property
    def stored(self) -> str | None:
        """A hash of what the domain stores for this split; None where it follows from the sequences alone."""
        return None

    def knows(self, name: HoldoutName) -> tuple[SplitPart, ...]:
        """The parts that make up the history of a query: those before the held-out one."""
        return tuple(part for part in SplitPart if part < HELD_OUT[name])

    def train(self, user: int) -> NDArray[np.int32]:
        """Training items of a user, oldest first."""
        items = self.domain.sequence(user)
        time_H = self.domain.times(user) if self.reads_times else None
        stretch = Stretch(user, np.array([0, len(items)]), items, time_H)
        trained: NDArray[np.int32] = items[self.assigned(stretch) == SplitPart.TRAIN]
        return trained

    def train_length(self, user: int) -> int:
        """Number of training items of a user."""
        return len(self.train(user))

    def train_lengths(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """`train_length` of all users in order, some at a time: the row of the first, and the lengths."""
        for stretch in self.train_stretches():
            yield stretch.first, np.diff(stretch.offset_B)

    def train_stretches(self) -> Iterator[Stretch]:
        """Training items of all users, in order."""
        for stretch in self.stretches():
            is_train_H = self.assigned(stretch) == SplitPart.TRAIN
            yield Stretch(stretch.first, offsets_of(_count(stretch, is_train_H)), stretch.item_H[is_train_H])

    @cached_property
    def train_offsets(self) -> NDArray[np.int64]:
        """Offsets of the users' training items in `train_items`, `(users + 1,)`."""
        return offsets_of(np.concatenate([lengths for _, lengths in self.train_lengths()]))

    @cached_property
    def train_items(self) -> NDArray[np.int32]:
        """Training items of all users, one after another, all in memory."""
        return np.concatenate([stretch.item_H for stretch in self.train_stretches()])

    @property
    def graph(self) -> InteractionGraph:
        """The training interactions as a graph; they are read when a model asks for them."""
        return InteractionGraph(self.domain.num_users, self.domain.num_items, self._edges, self.domain.item_feature)

    def _edges(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        users = np.repeat(np.arange(self.domain.num_users), np.diff(self.train_offsets))
        return users, self.train_items.astype(np.int64)

    @cached_property
    def train_counts(self) -> NDArray[np.int64]:
        """Training interactions of each item, `(N,)`."""
        counts = np.zeros(self.domain.num_items, dtype=np.int64)
        for stretch in self.train_stretches():
            counts += np.bincount(stretch.item_H, minlength=len(counts))
        return counts

    def held_out(self) -> Iterator[NDArray[np.bool_]]:
        """Which interactions train nothing, for all users in order, one stretch at a time."""
        for stretch in self.stretches():
            yield self.assigned(stretch) != SplitPart.TRAIN

    def holdout(self, name: HoldoutName, num_users: int | None = None) -> Holdout:
        """The queries of validation or of the test: those of all users, or of `num_users`, always the same ones."""
        queries, without_history = self.query_users(name)
        users = some_users(queries, num_users)
        lengths: dict[str, list[NDArray[np.int64]]] = {"target": [_no_users()], "history": [_no_users()]}
        targets: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        histories: list[NDArray[np.int32]] = [np.empty(0, np.int32)]
        for stretch in self.stretches():
            is_asked_B = np.zeros(len(stretch.offset_B) - 1, dtype=bool)
            is_asked_B[_between(users, stretch) - stretch.first] = True
            if not is_asked_B.any():
                continue
            lengths_B = np.diff(stretch.offset_B)
            is_asked_H = np.repeat(is_asked_B, lengths_B)
            part_H = self.assigned(stretch)[is_asked_H]
            asked = Stretch(0, offsets_of(lengths_B[is_asked_B]), stretch.item_H[is_asked_H])
            is_target_H = _is_first(asked, part_H == HELD_OUT[name])
            is_known_H = _is_in(part_H, (*self.knows(name), HISTORY_ONLY))
            for what, is_in_H in (("target", is_target_H), ("history", is_known_H)):
                lengths[what].append(_count(asked, is_in_H))
            targets.append(asked.item_H[is_target_H])
            histories.append(asked.item_H[is_known_H])
        offsets = {what: offsets_of(np.concatenate(found)) for what, found in lengths.items()}
        target = np.concatenate(targets).astype(np.int64)
        history = offsets["history"], np.concatenate(histories)
        return Holdout(name, users, offsets["target"], target, *history, without_history=without_history)

    def left_out(self, holdout: Holdout) -> str | None:
        """A warning that names users with targets and no history; None where there are none."""
        users = holdout.without_history
        if not len(users):
            return None
        shown = ", ".join(repr(self.domain.sequences.user_id(user)) for user in users[:MAX_SHOWN].tolist())
        return (
            f"{self.domain.name}: {len(users):,} of {len(users) + holdout.num_queries:,} users with {holdout.name} "
            f"targets have nothing known before them and are not ranked, such as {shown}"
        )

    def has_query(self, name: HoldoutName) -> bool:
        """Whether a user has both held-out items and a history; reads no more users than it takes to find one."""
        return any(len(asked) for asked, _ in self._query_users(name))

    def query_users(self, name: HoldoutName) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Users with held-out items: those with a history, and those without, who cannot be queries."""
        asked, alone = zip((_no_users(), _no_users()), *self._query_users(name), strict=True)
        return np.concatenate(asked), np.concatenate(alone)

    def _query_users(self, name: HoldoutName) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """`query_users` of one stretch after another."""
        for stretch in self.stretches():
            part_H = self.assigned(stretch)
            num_targets_B = _count(stretch, part_H == HELD_OUT[name])
            num_known_B = _count(stretch, _is_in(part_H, (*self.knows(name), HISTORY_ONLY)))
            asked = stretch.first + np.flatnonzero((num_targets_B > 0) & (num_known_B > 0))
            yield asked, stretch.first + np.flatnonzero((num_targets_B > 0) & (num_known_B == 0))

    def stretches(self) -> Iterator[Stretch]:
        """All users in order, with times where `parts` needs them."""
        return self.domain.sequences.stretches(with_times=self.reads_times)


def offsets_of(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each of several lists begins when they are laid end to end, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def some_users(users: NDArray[np.int64], num_users: int | None) -> NDArray[np.int64]:
    """All users, or `num_users` of them: the draw depends on nothing but how many there are."""
    if num_users is None or num_users >= len(users):
        return users
    drawn = generator(0, Purpose.RANKED_USERS).choice(len(users), num_users, replace=False, shuffle=False)
    return users[np.sort(drawn)]


def _between(users: NDArray[np.int64], stretch: Stretch) -> NDArray[np.int64]:
    """The given users (rising) that lie in a stretch."""
    return users[slice(*np.searchsorted(users, [stretch.first, stretch.first + len(stretch.offset_B) - 1]))]


def _count(stretch: Stretch, is_in_H: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Number of selected interactions of each user, `(B,)`."""
    counts_B = np.add.reduceat(np.append(is_in_H, False), stretch.offset_B[:-1], dtype=np.int64)
    return np.where(np.diff(stretch.offset_B) > 0, counts_B, 0)


def _is_in(part_H: NDArray[np.uint8], parts: Sequence[int]) -> NDArray[np.bool_]:
    """Which interactions belong to one of the parts, `(H,)`."""
    return np.asarray([part in parts for part in (*SplitPart, HISTORY_ONLY)])[part_H]


def _is_first(stretch: Stretch, is_in_H: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the selected interactions, the first of each user with each item, `(H,)`."""
    if _count(stretch, is_in_H).max(initial=0) <= 1:
        return is_in_H
    place_T = np.flatnonzero(is_in_H)
    item_T = stretch.item_H[place_T].astype(np.int64)
    user_T = np.searchsorted(stretch.offset_B, place_T, side="right")
    _, first = np.unique(user_T * (item_T.max(initial=0) + 1) + item_T, return_index=True)
    is_first_H = np.zeros_like(is_in_H)
    is_first_H[place_T[first]] = True
    return is_first_H


splits: Family[Split] = Family("split", home=__name__)

if TYPE_CHECKING:
    SplitField: TypeAlias = PartConfig
else:
    SplitField = splits.field


def split_of(config: PartConfig, domain: Domain, users: UserSampleConfig | None = None) -> Split:
    """The split of a domain that `config` asks for; `users`: the sample of users who train, None: all.

    Raises DataError where it needs times that the domain lacks, RecipeError for more users than have training items.
    """
    split = splits.part_class(config)(config, domain)
    if users is not None:
        length_M = np.concatenate([lengths for _, lengths in split.train_lengths()])
        split.users = UserSample.draw(users, length_M, domain.name)
    return split
