"""One step's input: the distinct items of a batch, and the windows over them."""
# B users, S window positions, L = S - 1 inputs, U distinct items.

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pmmrec.contracts import Batch, Corruption, Together, View, Windows
from pmmrec.data.contents import MAX_UNREADABLE
from pmmrec.data.corruption import CorruptionConfig, KeyedWindow, SlotPool, corrupt
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.mixing import Draw, MixingConfig, StepSampler, share
from pmmrec.data.randomness import Purpose, generator
from pmmrec.data.splits import Split, SplitField
from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
from pmmrec.data.windows import WindowConfig, WindowIndex
from pmmrec.errors import RecipeError
from pmmrec.settings import Config

Ints = NDArray[np.int64]


class DataConfig(Config):
    """How domains become batches."""

    split: SplitField = Field(
        default=LeaveOneOutConfig(), description="Which interactions train and which are held out."
    )
    window: WindowConfig = WindowConfig()
    mixing: MixingConfig = MixingConfig()
    corruption: CorruptionConfig = CorruptionConfig()
    max_unreadable: float = Field(
        default=MAX_UNREADABLE,
        ge=0,
        le=1,
        description="Share of a domain's items that may lack all that the model reads; they are never recommended.",
    )
    workers: int = Field(
        default=0, ge=0, le=256, description="Processes that read ahead; any number gives the same batches."
    )


class BatchBuilder:
    """The batch of every step, as a pure function of (seed, epoch, step, rank, world).

    All processes draw the same global batch and take an even share of its users. With `gather` they share out its items
    too, each to one process, and the windows of a batch are over the items of all; else a process holds the items of
    its own users. The users of a step are cut into `parts`, each a batch of its own.

    What happens to a window is drawn from (seed, visit, domain, window), so neither the number of processes nor of
    workers changes it; the visit is the epoch under natural weights, and tells visits within one epoch apart under
    others. Windows are padded on the left to the longest of the global batch, items are ordered by (domain, row), and
    each is read once.

    `views` are what the objectives ask for. With `View.CATALOGUE` the items of a batch are all items of all domains.
    With `View.POPULARITY` a batch holds `log_q_U`, the log of

        q = users of the batch x weight of the item's domain x expected slots of the item in one window of it

    where the users are those of this process's share, or all of them with `gather`. The last is, for the domain, the
    item's share of all slots shown times the mean slots of a window. With `one_domain` batches the weight is 1: nothing
    else can be drawn in such a step. Without `gather`, an item that this process holds as a replacement only has the q
    of its slots elsewhere in the global batch.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        splits: Sequence[Split],
        reader: ItemReader,
        window: WindowConfig,
        mixing: MixingConfig,
        corruption: CorruptionConfig | None,
        batch_users: int,
        seed: int,
        views: frozenset[View],
        rank: int = 0,
        world: int = 1,
        gather: bool = False,
        parts: int = 1,
    ) -> None:
        if View.CORRUPTED in views and corruption is None:
            raise RecipeError("corruption: an objective asks for corrupted windows; say how to corrupt them")
        self._domains = list(domains)
        self._reader = reader
        self._windows = [WindowIndex(split, window) for split in splits]
        names = [domain.name for domain in domains]
        counts = [index.num_windows for index in self._windows]
        self._sampler = StepSampler(counts, names, batch_users, seed, mixing)
        smallest = self._sampler.smallest_batch // parts
        if smallest < world:
            what = "a batch" if parts == 1 else f"the smallest of {parts} parts"
            raise RecipeError(
                f"batch_users: {what} of {smallest} users leaves some of {world} processes "
                f"without any; use fewer processes{'' if parts == 1 else ', fewer parts'} or larger batches"
            )
        self._corruption = corruption if View.CORRUPTED in views else None
        self._seed, self._rank, self._world = seed, rank, world
        # The key of an item is its row behind all items of the domains before its own.
        self._first_key = np.cumsum([0, *(domain.num_items for domain in domains)])
        self._log_share = self._log_expected_slots(mixing) if View.POPULARITY in views else None
        self._holds_catalogue = View.CATALOGUE in views
        self._gathers, self._parts = gather and world > 1, parts

    @property
    def steps_per_epoch(self) -> int:
        return self._sampler.steps_per_epoch

    def draw(self, epoch: int, step: int) -> Draw:
        """Which windows the step holds, over all processes. The first of an epoch draws the order of all its users."""
        return self._sampler.step(epoch, step)

    def build(self, epoch: int, step: int) -> Batch:
        """This process's share of the batch of one step."""
        columns = [np.array_split(column, self._parts) for column in self.draw(epoch, step)]
        first, *more = [self._build(Draw(*part)) for part in zip(*columns, strict=True)]
        return dataclasses.replace(first, more=tuple(more))

    def _build(self, everyone: Draw) -> Batch:
        mine = Draw(*(share(column, self._rank, self._world) for column in everyone))
        sees_all = self._world > 1 and (self._gathers or self._corruption is not None)
        all_windows = self._keyed_windows(everyone) if sees_all else []
        windows = self._own(all_windows) if sees_all else self._keyed_windows(mine)
        corrupted = self._corrupted(self._corruption, mine, windows, all_windows or windows)
        num_positions = self._longest(everyone, all_windows or windows)
        item_keys = [window.keys for window in windows]
        if self._gathers:
            key_U = self._keys([window.keys for window in all_windows])  # replacements are among them
        else:
            key_U = self._keys([*item_keys, *(keys for keys, _ in corrupted)])
        log_q_U = None
        if self._log_share is not None:
            num_users = len(everyone.domain_B if self._gathers else mine.domain_B)
            log_q_U = torch.from_numpy(self._log_share[key_U] + np.log(num_users)).float()
        return Batch(
            items=self._reader.read(*self._rows(self._dealt(key_U))),
            windows=self._over(key_U, item_keys, corrupted, num_positions),
            log_q_U=log_q_U,
            user_id=tuple(self._user_id(window) for window in windows),
            together=self._together(key_U, all_windows) if self._gathers else None,
        )

    def _own(self, windows: list[KeyedWindow]) -> list[KeyedWindow]:
        """This process's share of the windows of all."""
        return [windows[place] for place in share(np.arange(len(windows)), self._rank, self._world).tolist()]

    def _keys(self, held: Sequence[Ints]) -> Ints:
        """The distinct items of a step, in the order of (domain, row)."""
        return np.arange(self._first_key[-1]) if self._holds_catalogue else np.unique(np.concatenate(held))

    def _dealt(self, key_U: Ints) -> Ints:
        """Those that this process encodes: every one, or every world-th, so that no domain falls to one process alone.

        Where they are too few to go round, the first stands in.
        """
        own = key_U[self._rank :: self._world] if self._gathers else key_U
        return own if len(own) else key_U[:1]

    def _rows(self, keys: Ints) -> tuple[Ints, Ints]:
        """Domain and row of each."""
        domains = np.searchsorted(self._first_key, keys, side="right") - 1
        return domains, keys - self._first_key[domains]

    def _over(
        self, key_U: Ints, item_keys: Sequence[Ints], corrupted: Sequence[tuple[Ints, Ints]], num_positions: int
    ) -> Windows:
        places = [np.searchsorted(key_U, keys) for keys in item_keys]
        is_valid_BS = _left_padded([np.ones_like(keys) for keys in item_keys], num_positions).bool()
        corruption = None
        if corrupted:
            corrupted_places = [np.searchsorted(key_U, keys) for keys, _ in corrupted]
            corruption = Corruption(
                item_index_BL=_left_padded(corrupted_places, num_positions - 1),
                noise_BL=_left_padded([noise for _, noise in corrupted], num_positions - 1),
            )
        return Windows(_left_padded(places, num_positions), is_valid_BS, corruption)

    def _together(self, key_U: Ints, all_windows: Sequence[KeyedWindow]) -> Together:
        slots = np.searchsorted(key_U, np.concatenate([window.keys for window in all_windows]))
        num_slots_U = np.bincount(slots, minlength=len(key_U)).astype(np.int64)
        return Together(len(all_windows), torch.from_numpy(num_slots_U), self._reader.has(*self._rows(key_U)))

    def _keyed_windows(self, draw: Draw) -> list[KeyedWindow]:
        windows = []
        for domain, window, visit in zip(*(column.tolist() for column in draw), strict=True):
            index = self._windows[domain]
            rows = index.items(window, generator(self._seed, Purpose.WINDOW, visit, domain, window))
            windows.append(KeyedWindow(self._first_key[domain] + rows, domain, index.user(window)))
        return windows

    def _corrupted(
        self, config: CorruptionConfig | None, mine: Draw, windows: list[KeyedWindow], all_windows: list[KeyedWindow]
    ) -> list[tuple[Ints, Ints]]:
        if config is None:
            return []
        pool = SlotPool(all_windows)
        corrupted = []
        for window, visit, number in zip(windows, mine.pass_B.tolist(), mine.window_B.tolist(), strict=True):
            rng = generator(self._seed, Purpose.CORRUPTION, visit, window.domain, number)
            corrupted.append(corrupt(window, pool, config, rng))
        return corrupted

    def _longest(self, draw: Draw, windows: Sequence[KeyedWindow]) -> int:
        """Of all windows of a draw, of which some are at hand, or all."""
        if len(windows) == len(draw.window_B):
            return max(len(window.keys) for window in windows)
        places = zip(draw.domain_B.tolist(), draw.window_B.tolist(), strict=True)
        return max(int(self._windows[domain].length(window)) for domain, window in places)

    def _log_expected_slots(self, mixing: MixingConfig) -> NDArray[np.float64]:
        """Log of the slots in which a batch of one user is expected to show each item, by key."""
        weights = self._sampler.weights if mixing.batches == "mixed" else np.ones(len(self._windows))
        with np.errstate(divide="ignore"):  # items that no window holds: -inf, and in no batch
            return np.concatenate(
                [
                    np.log(weight * index.expected_slots() / index.num_windows)
                    for weight, index in zip(weights, self._windows, strict=True)
                ]
            )

    def _user_id(self, window: KeyedWindow) -> str:
        domain = self._domains[window.domain]
        return f"{domain.name}/{domain.sequences.user_id(window.user)}"


def _left_padded(rows: Sequence[Ints], length: int) -> Tensor:
    """`(B, length)` int64, with zeros before each row."""
    padded = np.zeros((len(rows), length), dtype=np.int64)
    for place, row in enumerate(rows):
        padded[place, length - len(row) :] = row
    return torch.from_numpy(padded)
