"""One step's input: the distinct items of a batch, and the windows over them."""
# B users, S window positions, L = S - 1 inputs, U distinct items.

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from typing_extensions import Self

from pmmrec.contracts import Batch, GlobalItems, ItemInputs, WindowPass, Windows
from pmmrec.data.contents import MAX_UNREADABLE
from pmmrec.data.domain import Domain
from pmmrec.data.examples import ExampleKind, Examples, ExamplesField, kind_of
from pmmrec.data.examples.windows import WindowConfig, WindowKindConfig
from pmmrec.data.items import ItemReader
from pmmrec.data.mixing import Draw, MixingConfig, StepSampler, share
from pmmrec.data.negatives import NegativePool
from pmmrec.data.noise import KeyedWindow, SlotPool
from pmmrec.data.passes import KeyedImpression, PassMaker, PassRows, Visit, filled, padded, padded_places
from pmmrec.data.randomness import Purpose, generator
from pmmrec.data.splits import Split, SplitField, split_of
from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
from pmmrec.data.user_sample import UserSampleConfig
from pmmrec.errors import RecipeError
from pmmrec.packing import HostArray
from pmmrec.requests import DRAWS, Holding, NextItems, Requests, View, WindowRequest
from pmmrec.settings import Config

Ints = NDArray[np.int64]
MARKS_OF_KEY = 64  # items that are marked as fast as one key is sorted
MAX_USER_IDS = 100_000  # kept in memory
_UNUSED = np.random.default_rng(0)  # for examples about which nothing is random


class DataConfig(Config):
    """How domains become batches."""

    split: SplitField = Field(
        default=LeaveOneOutConfig(), description="Which interactions train and which are held out."
    )
    users: UserSampleConfig | None = Field(
        default=None,
        description="The users who train, of each domain; null: all. Ids, popularity and all baselines know these "
        "alone. {sample: 1000, seed: 1} draws so many.",
    )
    examples: ExamplesField = Field(
        default=WindowKindConfig(),
        description="What one example of training is. windows: a window of a user's history. interactions: a user and "
        "an item without a history, for systems that know users by id. items: an item of the catalogue, without users. "
        "impressions: items that a user was shown at once, some of them clicked, and the history before.",
    )
    window: WindowConfig = WindowConfig()
    mixing: MixingConfig = MixingConfig()
    max_unreadable: float = Field(
        default=MAX_UNREADABLE,
        ge=0,
        le=1,
        description="Share of a domain's items that may lack all that the model reads; they are never recommended.",
    )
    workers: int = Field(
        default=0, ge=0, le=256, description="Processes that read ahead; any number gives the same batches."
    )

    @model_validator(mode="after")
    def _windows_are_read(self) -> Self:
        kind = self.kind
        if not kind.reads_window and self.window != WindowConfig():
            why = "" if Holding.HISTORY in kind.holds else ", which have no history"
            raise ValueError(f"window: has no effect with examples: {self.examples.type}{why}; leave it out")
        return self

    @property
    def kind(self) -> ExampleKind:
        """The kind of examples."""
        return kind_of(self.examples, self.window)

    @property
    def has_test(self) -> bool:
        """Whether the domains of the run keep test targets."""
        return True

    def split_of(self, domain: Domain) -> Split:
        """What of a domain trains, and what is held out. Raises as `pmmrec.data.splits.split_of`."""
        return split_of(self.split, domain, self.users)


@dataclass(frozen=True)
class Division:
    """How the examples of a step are divided: over processes, and within a process over parts done one by one."""

    rank: int = 0
    world: int = 1
    gather: bool = False  # items are divided too, each is encoded by one process, and negatives are those of all
    parts: int = 1  # batches of a step, each with its own negatives


class BatchBuilder:
    """The batch of every step, as a pure function of (seed, epoch, step, rank, world).

    All processes draw the same global batch and take an even share of its examples. With `gather` each of its items is
    encoded by one process, and windows refer to the items of all processes; else a process holds the items of its own
    examples.

    What is random about an example is drawn from (seed, visit, domain, number), so neither the number of processes nor
    that of workers changes it. The visit is the epoch under natural weights; under other weights it also tells visits
    within one epoch apart. Windows are padded on the left to the longest of the global batch, items are ordered by
    (domain, row), and each is read once.

    `requests` are those of all objectives. With `View.CATALOGUE` the items of a batch are all items of all domains;
    they are read once, and every batch holds the same `catalogue`.
    With `View.POPULARITY` a batch holds `log_q_U`, the log of

        q = users of the batch x weight of the item's domain x expected slots of the item in one window of it

    where the users are those of this process's share, or all of them with `gather`. The last is, for the domain, the
    item's share of all slots shown times the mean slots of a window. With `one_domain` batches the weight is 1: nothing
    else can be drawn in such a step. Without `gather`, an item that this process holds as a replacement only has the q
    of its slots elsewhere in the global batch.
    """

    def __init__(
        self,
        splits: Sequence[Split],
        reader: ItemReader,
        config: DataConfig,
        requests: Requests,
        batch_users: int,
        seed: int,
        division: Division | None = None,
        examples: Sequence[Examples] | None = None,
        beside: BatchBuilder | None = None,
    ) -> None:
        """`examples`: of each domain, in place of those of its training part.

        `beside`: another builder of the same items, requests and processes; one catalogue serves both.
        """
        self._domains = [split.domain for split in splits]
        self._reader, self._seed, self._division = reader, seed, division or Division()
        self._kind = config.kind
        self._kind.refuse_unheld(requests)
        self._examples = examples or [self._kind.training(split) for split in splits]
        names = [domain.name for domain in self._domains]
        counts = [index.num_examples for index in self._examples]
        self._sampler = StepSampler(counts, names, batch_users, seed, config.mixing)
        refuse_empty_shares(self._sampler.smallest_batch, self._division, is_validation=examples is not None)
        # The key of an item is its row behind all items of the domains before its own; so it is with users.
        self._first_key = np.cumsum([0, *(domain.num_items for domain in self._domains)])
        self._first_user = np.cumsum([0, *(domain.num_users for domain in self._domains)])
        self._user_ids: dict[int, str] = {}  # by place among the users of all domains
        self._have_history, self._have_users = (one in self._kind.holds for one in (Holding.HISTORY, Holding.USER))
        self._last_alone_counts = self._examples[0].last_alone_counts
        pools = [
            NegativePool(one, int(self._first_key[domain]), reader.is_readable(domain))
            for domain, one in enumerate(self._examples)
        ]
        self._maker = PassMaker(requests, pools, seed)
        self._requests = requests
        asks_popularity = View.POPULARITY in requests.views
        self._log_share = self._log_expected_slots(config.mixing) if asks_popularity else None
        self._gathers = self._division.gather and self._division.world > 1
        self._beside = beside

    @property
    def steps_per_epoch(self) -> int:
        return self._sampler.steps_per_epoch

    @property
    def warnings(self) -> list[str]:
        """What a user must know of the examples of each domain."""
        return [one.warning for one in self._examples if one.warning is not None]

    @cached_property
    def catalogue(self) -> ItemInputs | None:
        """This process's share of all items, for all steps; None where a batch holds the items of its windows."""
        if self._beside is not None:
            return self._beside.catalogue
        if View.CATALOGUE not in self._requests.views:
            return None
        return self._reader.read(*self._rows(self._dealt(np.arange(self._first_key[-1]))))

    def draw(self, epoch: int, step: int) -> Draw:
        """Which windows the step holds, over all processes. The first of an epoch draws the order of all its users."""
        return self._sampler.step(epoch, step)

    def build(self, epoch: int, step: int) -> Batch:
        """This process's share of the batch of one step."""
        drawn, parts = self.draw(epoch, step), self._division.parts
        columns = [np.array_split(column, parts) for column in drawn] if parts > 1 else [[column] for column in drawn]
        places = [(epoch, step, part) for part in range(parts)]
        built = [self._build(Draw(*part)) for part in zip(*columns, strict=True)]
        first, *more = [self._with_draw(batch, place) for batch, place in zip(built, places, strict=True)]
        return dataclasses.replace(first, more=tuple(more))

    def _with_draw(self, batch: Batch, place: tuple[int, int, int]) -> Batch:
        """The batch with a number that decides what is random of items or graph, where an objective asks for that."""
        if not self._requests.views & DRAWS:
            return batch
        draw = torch.tensor(generator(self._seed, Purpose.HIDING, *place).integers(1 << 62), dtype=torch.int64)
        return dataclasses.replace(batch, items=dataclasses.replace(batch.items, draw=draw))

    def _build(self, everyone: Draw) -> Batch:
        sees_all = self._division.world > 1 and (self._gathers or self._maker.reads_others)
        everywhere = self._visits(everyone) if sees_all else []
        own = self._own(everywhere) if sees_all else self._visits(Draw(*map(self._share, everyone)))
        pool = SlotPool([visit.window for visit in everywhere or own]) if self._maker.reads_others else None
        rows = self._maker.rows(own, pool)
        if self._gathers:
            drawn = self._maker.rows(everywhere, pool) if self._maker.adds_items else {}
            key_U = self._keys(everywhere, drawn)  # replacements are among the items of all
        else:
            key_U = self._keys(own, rows)
        log_q_U = None
        if self._log_share is not None:
            num_users = len(everyone.domain_B) if self._gathers else len(own)
            log_q_U = torch.from_numpy(self._log_share[key_U] + np.log(num_users)).float()
        return Batch(
            items=self.catalogue or self._reader.read(*self._rows(self._dealt(key_U))),
            windows=self._over(key_U, own, rows, self._num_positions(everyone, everywhere or own)),
            log_q_U=log_q_U,
            user_id=tuple(self._user_id(visit.window) for visit in own) if self._have_users else (),
            unit=self._kind.unit,
            global_items=self._global_items(key_U, everywhere) if self._gathers else None,
        )

    def _share(self, column: Ints) -> Ints:
        return share(column, self._division.rank, self._division.world)

    def _own(self, visits: list[Visit]) -> list[Visit]:
        """This process's share of the windows of all."""
        return [visits[place] for place in self._share(np.arange(len(visits))).tolist()]

    def _keys(self, visits: Sequence[Visit], rows: Mapping[WindowRequest, PassRows]) -> Ints:
        """The distinct items of a step, in the order of (domain, row)."""
        num_items = int(self._first_key[-1])
        if View.CATALOGUE in self._requests.views:
            return np.arange(num_items)
        others = [keys for of_pass in rows.values() for keys in of_pass.other_keys]
        keys = np.concatenate([*(visit.window.keys for visit in visits), *others])
        if num_items > MARKS_OF_KEY * len(keys):
            return np.unique(keys)
        is_there = np.zeros(num_items, dtype=bool)  # faster than sorting
        is_there[keys] = True
        return np.flatnonzero(is_there)

    def _dealt(self, key_U: Ints) -> Ints:
        """Those that this process encodes: every one, or every world-th, so that no domain falls to one process alone.

        Where they are too few to go round, the first stands in.
        """
        own = key_U[self._division.rank :: self._division.world] if self._gathers else key_U
        return own if len(own) else key_U[:1]

    def _rows(self, keys: Ints) -> tuple[Ints, Ints]:
        """Domain and row of each."""
        domains = np.searchsorted(self._first_key, keys, side="right") - 1
        return domains, keys - self._first_key[domains]

    def _over(
        self, key_U: Ints, visits: Sequence[Visit], rows: Mapping[WindowRequest, PassRows], num_positions: int
    ) -> Windows:
        """The windows, and the passes over them, of the distinct items `key_U`."""
        held = [visit.window.keys for visit in visits]
        lengths = [len(keys) for keys in held]
        is_valid_BS = filled(lengths, num_positions)
        places_BS = padded_places(held, key_U, num_positions)
        windows = Windows(
            places_BS, is_valid_BS, length_B=HostArray(lengths), last_alone_counts=self._last_alone_counts
        )
        passes: dict[WindowRequest, WindowPass] = {}
        for request, drawn in self._requests.passes.items():
            length = num_positions - (not request.reads_last)
            is_plain = isinstance(request, NextItems) and not drawn and self._have_history
            of_pass = windows.next_items if is_plain else padded(rows[request], key_U, length)
            passes[request] = of_pass.placed()
        windows = dataclasses.replace(windows, passes=passes)
        if View.MODALITIES in self._requests.views:
            windows = windows.placed()
        if not self._have_users:
            return windows
        users = [self._first_user[visit.window.domain] + visit.window.user for visit in visits]
        return dataclasses.replace(windows, user_index_B=torch.tensor(users, dtype=torch.int64))

    def _global_items(self, key_U: Ints, visits: Sequence[Visit]) -> GlobalItems:
        slots = np.searchsorted(key_U, np.concatenate([visit.window.keys for visit in visits]))
        num_slots_U = np.bincount(slots, minlength=len(key_U)).astype(np.int64)
        return GlobalItems(len(visits), torch.from_numpy(num_slots_U), self._reader.has(*self._rows(key_U)))

    def _visits(self, draw: Draw) -> list[Visit]:
        visits = []
        for domain, number, visit in zip(*(column.tolist() for column in draw), strict=True):
            index = self._examples[domain]
            rng = generator(self._seed, Purpose.WINDOW, visit, domain, number) if index.draws else _UNUSED
            rows = index.items(number, rng)
            first_key, impression, shown = self._first_key[domain], index.impression(number), None
            if impression is not None:
                shown = KeyedImpression(first_key + impression.item_C, impression.is_clicked_C)
            window = KeyedWindow(first_key + rows, domain, index.user(number))
            visits.append(Visit(window, visit, number, self._have_history, self._last_alone_counts, shown))
        return visits

    def _num_positions(self, draw: Draw, visits: Sequence[Visit]) -> int:
        """Items of the longest example, and the place before them where an example has no history.

        A pass that leaves out the last item has one input at least, be it padding.
        """
        leaves_out = any(not request.reads_last for request in self._requests.passes)
        return max(self._longest(draw, visits) + self._kind.num_blank, 1 + leaves_out)

    def _longest(self, draw: Draw, visits: Sequence[Visit]) -> int:
        """Of all windows of a draw, of which some are at hand, or all."""
        if len(visits) == len(draw.number_B):
            return max(len(visit.window.keys) for visit in visits)
        places = zip(draw.domain_B.tolist(), draw.number_B.tolist(), strict=True)
        return max(int(self._examples[domain].length(window)) for domain, window in places)

    def _log_expected_slots(self, mixing: MixingConfig) -> NDArray[np.float64]:
        """Log of the slots in which a batch of one user is expected to show each item, by key."""
        weights = self._sampler.weights if mixing.batches == "mixed" else np.ones(len(self._examples))
        with np.errstate(divide="ignore"):  # items that no window holds: -inf, and in no window of a batch
            return np.concatenate(
                [
                    np.log(weight * index.expected_slots() / index.num_examples)
                    for weight, index in zip(weights, self._examples, strict=True)
                ]
            )

    def _user_id(self, window: KeyedWindow) -> str:
        key = int(self._first_user[window.domain]) + window.user
        told = self._user_ids.get(key)
        if told is None:
            domain = self._domains[window.domain]
            told = f"{domain.name}/{domain.sequences.user_id(window.user)}"
            if len(self._user_ids) < MAX_USER_IDS:
                self._user_ids[key] = told
        return told


def refuse_empty_shares(smallest_batch: int, division: Division, *, is_validation: bool = False) -> None:
    """RecipeError where a batch, or a part of one, has fewer users than there are processes.

    `is_validation`: the batches are those of the validation loss.
    """
    smallest = smallest_batch // division.parts
    if smallest < division.world:
        setting, more = (
            ("validation.judge: loss", "more examples") if is_validation else ("batch_users", "larger batches")
        )
        what = "a batch" if division.parts == 1 else f"the smallest of {division.parts} parts"
        raise RecipeError(
            f"{setting}: {what} of {smallest} users leaves some of {division.world} processes "
            f"without any; use fewer processes{'' if division.parts == 1 else ', fewer parts'} or {more}"
        )
