"""Compute the states of an encoder's frozen part once for each item, keep them on disk, and fetch them by row."""
# R rows fetched, K tokens of all of them, H width of the backbone.

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pmmrec.contracts import PixelInputs, Prefix, PrefixInputs, PrefixSlots, TokenInputs
from pmmrec.data.cache import CacheEntry, ContentCache, mark_used
from pmmrec.data.prefix_room import NoRoomError, make_room
from pmmrec.data.releases import made_by
from pmmrec.packing import HostArray, Ints, Packing
from pmmrec.progress import Progress
from pmmrec.settings import Config

STATES, ENDS, LAYOUT = "states.bin", "ends.npy", "layout.json"
MARK_EVERY_S = 600  # how often a table in use is marked as used
DEVICE_SHARE = 0.25  # of a GPU's free memory, at most, for all tables of a run
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PrefixConfig(Config):
    """Whether and how states of frozen blocks are kept."""

    use: Literal["auto", "on", "off"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    budget_gb: float = Field(50.0, gt=0)
    makes: bool = True  # False: only tables that exist are read

    @property
    def insists(self) -> bool:
        """Whether it is an error where states cannot be kept."""
        return self.use == "on" and self.makes


class Chunk(NamedTuple):
    """Some items that pass the frozen part together, and their slots in the table."""

    slot_R: Ints
    inputs: TokenInputs | PixelInputs


@dataclass(frozen=True)
class TableRequest:
    """Which states a table holds, and the inputs from which they are computed."""

    key: str  # of the contents of the items, as the encoder reads them
    num_rows_R: Ints  # tokens of each distinct text; ones for images and pooled texts
    is_ragged: bool  # True for tokens of texts; all others have one shape
    chunks: Callable[[], Iterator[Chunk]]  # the most expensive first; called when the table must be made


class PrefixTable:
    """States of distinct contents, valid tokens only, as one memory-mapped file; call `open` to get one."""

    def __init__(self, folder: Path) -> None:
        layout = json.loads((folder / LAYOUT).read_text(encoding="utf-8"))
        self.folder, self._marked_s = folder, -math.inf
        self.is_ragged: bool = layout["is_ragged"]
        self._ends: Ints = np.load(folder / ENDS, mmap_mode="r", allow_pickle=False)
        self._states = _mapped(folder / STATES).view(DTYPES[layout["dtype"]]).view(layout["shape"])
        self._mark_used()

    def __reduce__(self) -> tuple[Any, ...]:
        return PrefixTable, (self.folder,)  # a worker process maps the file again

    @property
    def num_bytes(self) -> int:
        return self._states.numel() * self._states.element_size()

    @classmethod
    def open(
        cls,
        prefix: Prefix,
        request: TableRequest,
        config: PrefixConfig,
        cache: ContentCache,
        progress: Progress | None = None,
    ) -> PrefixTable:
        """The table in `cache`, made first where it is missing and `config` allows making it.

        Its key depends on the frozen weights, the preprocessing, the items, the precision and the libraries that
        compute the states. `cache.say` is told which tables were removed to make room. Raises NoRoomError when the
        disk or the budget is too small, when other processes remove the table as fast as it is made, or when it is
        missing and may not be made.
        """
        inputs = {"prefix": prefix.fingerprint, "items": request.key, "precision": config.precision}
        entry = cache.entry("prefix", "frozen states", {**inputs, "releases": made_by("states")}, NoRoomError)

        def make(folder: Path) -> None:
            _make(folder, entry, prefix, request, config, progress)

        return entry.open(make if config.makes else None, cls)

    def move_to(self, device: torch.device, room: DeviceRoom) -> None:
        """Copy the table to the memory of a GPU where there is room; for the CPU the map is as good."""
        if device.type == "cuda" and self._states.device != device and room.grants(device, self.num_bytes):
            self._states = self._states.to(device)

    def lengths(self, slot_R: Ints) -> Ints:
        """How many states each of these contents has: the tokens of a text, one for an image or a pooled text."""
        if not self.is_ragged:
            return np.ones_like(slot_R)
        return self._ends[slot_R] - np.where(slot_R > 0, self._ends[slot_R - 1], 0)

    def fetch(self, slot_R: Ints) -> Tensor:
        """States of these contents one after another, `(K, H)` of tokens or `(R, ...)` of images and pooled texts.

        They have the stored precision, and lie on the device of the table.
        """
        self._mark_used()
        length_R = self.lengths(slot_R)
        end_of_before_R = self._ends[slot_R] - np.cumsum(length_R)
        row_K = np.repeat(end_of_before_R, length_R) + np.arange(length_R.sum())
        return self._states[torch.from_numpy(row_K).to(self._states.device)]

    def _mark_used(self) -> None:
        """Mark the table as used now and then, so that long runs keep theirs."""
        if time.monotonic() - self._marked_s > MARK_EVERY_S:
            self._marked_s = time.monotonic()
            mark_used(self.folder)


def _mapped(path: Path) -> Tensor:
    """The bytes of a file, mapped read-only: a writable map may not be larger than the memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="r"))


class DeviceRoom:
    """How much GPU memory all tables of a run may take: a share of what is free at the first request."""

    def __init__(self, free_bytes: Callable[[torch.device], int] | None = None) -> None:
        self._free_bytes = free_bytes or _free_bytes
        self._left: dict[torch.device, float] = {}

    def grants(self, device: torch.device, num_bytes: int) -> bool:
        """Take `num_bytes` if they fit; says whether they did."""
        if device not in self._left:
            self._left[device] = DEVICE_SHARE * self._free_bytes(device)
        fits = num_bytes <= self._left[device]
        self._left[device] -= num_bytes if fits else 0
        return fits


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0]


class PrefixTables:
    """The tables of one encoder over the domains of a run."""

    def __init__(self, tables: Sequence[PrefixTable | None], slots: Sequence[Ints], room: DeviceRoom) -> None:
        self._tables = list(tables)  # None: a domain without the modality
        self._slots = list(slots)  # of each row of a domain
        self._room = room

    @property
    def num_bytes(self) -> int:
        return sum(table.num_bytes for table in self._tables if table is not None)

    def slots(self, domain_R: Ints, row_R: Ints, item_index_R: Ints) -> PrefixSlots:
        """Where the states of these items lie, longer texts first; one slot -1 where there are no items."""
        if not len(row_R):
            zero = torch.zeros(1, dtype=torch.int64)
            return PrefixSlots(zero, zero - 1, HostArray(item_index_R))
        slot_R, length_R = np.zeros(len(row_R), dtype=np.int64), np.zeros(len(row_R), dtype=np.int64)
        for domain in np.unique(domain_R):
            places = np.flatnonzero(domain_R == domain)
            slot_R[places] = self._slots[domain][row_R[places]]
            length_R[places] = self._table(domain).lengths(slot_R[places])
        order_R = np.argsort(-length_R, kind="stable")
        domain_R = domain_R[order_R].astype(np.int64)
        return PrefixSlots(
            torch.from_numpy(domain_R), torch.from_numpy(slot_R[order_R]), HostArray(item_index_R[order_R])
        )

    def fetch(self, slots: PrefixSlots, device: torch.device) -> PrefixInputs:
        """The states themselves, float32 on `device`. Call it in the process of the model, not in a data worker."""
        domain_R, slot_R = slots.domain_R.numpy(), slots.slot_R.numpy()
        if slot_R[0] < 0:
            table = next(table for table in self._tables if table is not None)
            one = table.fetch(np.zeros(1, dtype=np.int64))
            state = torch.zeros_like(one[:1], dtype=torch.float32, device=device)
            return PrefixInputs(state, Packing([1]) if table.is_ragged else None, slots.item_index_R)
        domains, length_R, states = np.unique(domain_R), np.empty_like(slot_R), list[Tensor]()
        for domain in domains:
            places, table = np.flatnonzero(domain_R == domain), self._table(domain)
            table.move_to(device, self._room)
            length_R[places] = table.lengths(slot_R[places])
            states.append(table.fetch(slot_R[places]).to(device).float())
        domain_K = np.repeat(domain_R, length_R)
        state = states[0] if len(states) == 1 else _joined(states, [domain_K == domain for domain in domains])
        packing = Packing(length_R) if self._table(domains[0]).is_ragged else None
        return PrefixInputs(state, packing, slots.item_index_R)

    def _table(self, domain: int) -> PrefixTable:
        table = self._tables[domain]
        assert table is not None  # noqa: S101  slots exist only for rows that have states
        return table


def _joined(states: Sequence[Tensor], is_of_K: Sequence[NDArray[np.bool_]]) -> Tensor:
    """The states of several tables, each at the places that are of it."""
    joined = states[0].new_empty((len(is_of_K[0]), *states[0].shape[1:]))
    for state, is_of in zip(states, is_of_K, strict=True):
        joined.index_copy_(0, torch.from_numpy(np.flatnonzero(is_of)).to(joined.device), state)
    return joined


def _make(
    folder: Path,
    entry: CacheEntry,
    prefix: Prefix,
    request: TableRequest,
    config: PrefixConfig,
    progress: Progress | None,
) -> None:
    """Compute the states and write the files of a table to `folder`."""
    dtype, chunks = DTYPES[config.precision], request.chunks()
    chunk = next(chunks)
    states = prefix.states(chunk.inputs)
    ends = np.cumsum(request.num_rows_R)
    shape = (int(ends[-1]), *states.shape[1:])
    num_bytes = math.prod(shape) * dtype.itemsize
    with (folder / STATES).open("wb") as file:
        file.truncate(num_bytes)  # first, so that processes that look for room at the same time count it
        make_room(entry.folder, num_bytes, int(config.budget_gb * 1e9), entry.say)
        _reserve(file, num_bytes)
    flat = torch.from_file(str(folder / STATES), shared=True, size=math.prod(shape), dtype=dtype)
    table, num_done = flat.view(shape), 0
    while True:
        _write(table, ends, chunk, states, is_ragged=request.is_ragged)
        num_done += len(chunk.slot_R)
        if progress is not None:
            progress("frozen states", num_done, len(ends))
        following = next(chunks, None)
        if following is None:
            break
        chunk, states = following, prefix.states(following.inputs)
    np.save(folder / ENDS, ends, allow_pickle=False)
    layout = {"dtype": config.precision, "shape": list(shape), "is_ragged": request.is_ragged}
    (folder / LAYOUT).write_text(json.dumps(layout), encoding="utf-8")


def _reserve(file: IO[bytes], num_bytes: int) -> None:
    """Allocate the blocks of a file: a full disk is an error now, not a signal while the file is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)


def _write(table: Tensor, ends: Ints, chunk: Chunk, states: Tensor, *, is_ragged: bool) -> None:
    place_K = ends[chunk.slot_R[chunk.inputs.item_index_R.values]] - 1
    if is_ragged and isinstance(chunk.inputs, TokenInputs):
        packing = chunk.inputs.packing
        place_K = (place_K + 1 - packing.length_R)[packing.row_K] + packing.place_K.values
    table[torch.from_numpy(place_K)] = states.to("cpu", table.dtype)
