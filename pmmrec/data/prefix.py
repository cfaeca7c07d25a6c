"""Compute the states of an encoder's frozen part once for each item, keep them on disk, and fetch them by row."""
# R rows fetched, T tokens of the longest of them, H width of the backbone.

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
from pmmrec.progress import Progress
from pmmrec.settings import Config

Ints = NDArray[np.int64]
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
    num_rows_R: Ints  # tokens of each distinct text; ones for images
    is_ragged: bool  # True for texts; all images have one shape
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

    def fetch(self, slot_R: Ints) -> tuple[Tensor, Tensor]:
        """States of these contents, `(R, T, H)` or `(R, ...)`, and which tokens are valid, `(R, T)` or `(R, 0)`.

        States have the stored precision, on the device of the table, right-padded with zeros.
        """
        self._mark_used()
        device = self._states.device
        end_R = torch.from_numpy(self._ends[slot_R])
        if not self.is_ragged:
            return self._states[(end_R - 1).to(device)], torch.zeros(len(slot_R), 0, dtype=torch.bool)
        start_R = torch.from_numpy(np.where(slot_R > 0, self._ends[slot_R - 1], 0))
        place_T = torch.arange(int((end_R - start_R).max()))
        is_valid_RT = place_T < (end_R - start_R)[:, None]
        row_RT = torch.where(is_valid_RT, start_R[:, None] + place_T, 0)
        state_RTH = self._states[row_RT.to(device)]
        return torch.where(is_valid_RT.to(device)[:, :, None], state_RTH, 0.0), is_valid_RT

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
        """Where the states of these items lie; one slot -1 where there are no items."""
        if not len(row_R):
            zero = torch.zeros(1, dtype=torch.int64)
            return PrefixSlots(zero, zero - 1, zero)
        slot_R = np.zeros(len(row_R), dtype=np.int64)
        for domain in np.unique(domain_R):
            slot_R[domain_R == domain] = self._slots[domain][row_R[domain_R == domain]]
        return PrefixSlots(
            torch.from_numpy(domain_R.astype(np.int64)), torch.from_numpy(slot_R), torch.from_numpy(item_index_R)
        )

    def fetch(self, slots: PrefixSlots, device: torch.device) -> PrefixInputs:
        """The states themselves, float32 on `device`. Call it in the process of the model, not in a data worker."""
        domain_R, slot_R = slots.domain_R.numpy(), slots.slot_R.numpy()
        is_empty = bool(slot_R[0] < 0)
        groups = []
        for domain in np.unique(domain_R):
            places, table = np.flatnonzero(domain_R == domain), self._tables[domain]
            if table is None and is_empty:
                table = next(other for other in self._tables if other is not None)
            assert table is not None  # noqa: S101  slots exist only for rows that have states
            table.move_to(device, self._room)
            groups.append((places, *table.fetch(np.maximum(slot_R[places], 0))))
        state_R, is_valid_RT = groups[0][1:] if len(groups) == 1 else _joined(groups, len(slot_R))
        state_R = state_R.to(device).float()
        state_R = torch.zeros_like(state_R) if is_empty else state_R
        return PrefixInputs(state_R, is_valid_RT.to(device), slots.item_index_R.to(device))


def _joined(groups: list[tuple[Ints, Tensor, Tensor]], num_rows: int) -> tuple[Tensor, Tensor]:
    """Join states and validity of several tables, each row in its place."""
    _, first, _ = groups[0]
    longest = max(is_valid.shape[1] for _, _, is_valid in groups)
    shape = (longest, *first.shape[2:]) if longest else first.shape[1:]
    state_R = first.new_zeros((num_rows, *shape))
    is_valid_RT = torch.zeros(num_rows, longest, dtype=torch.bool)
    for places, state, is_valid in groups:
        place_R = torch.from_numpy(places)
        length = slice(state.shape[1]) if longest else slice(None)
        state_R[place_R.to(first.device), length] = state.to(first.device)
        is_valid_RT[place_R, : is_valid.shape[1]] = is_valid
    return state_R, is_valid_RT


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
    states_R = prefix.states(chunk.inputs)
    ends = np.cumsum(request.num_rows_R)
    shape = (int(ends[-1]), *states_R.shape[2 if request.is_ragged else 1 :])
    num_bytes = math.prod(shape) * dtype.itemsize
    with (folder / STATES).open("wb") as file:
        file.truncate(num_bytes)  # first, so that processes that look for room at the same time count it
        make_room(entry.folder, num_bytes, int(config.budget_gb * 1e9), entry.say)
        _reserve(file, num_bytes)
    flat = torch.from_file(str(folder / STATES), shared=True, size=math.prod(shape), dtype=dtype)
    table, num_done = flat.view(shape), 0
    while True:
        _write(table, ends, chunk.slot_R, states_R, chunk.inputs)
        num_done += len(chunk.slot_R)
        if progress is not None:
            progress("frozen states", num_done, len(ends))
        following = next(chunks, None)
        if following is None:
            break
        chunk, states_R = following, prefix.states(following.inputs)
    np.save(folder / ENDS, ends, allow_pickle=False)
    layout = {"dtype": config.precision, "shape": list(shape), "is_ragged": request.is_ragged}
    (folder / LAYOUT).write_text(json.dumps(layout), encoding="utf-8")


def _reserve(file: IO[bytes], num_bytes: int) -> None:
    """Allocate the blocks of a file: a full disk is an error now, not a signal while the file is written."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, num_bytes)


def _write(table: Tensor, ends: Ints, slot_R: Ints, states_R: Tensor, inputs: TokenInputs | PixelInputs) -> None:
    states_R = states_R.to("cpu", table.dtype)
    if isinstance(inputs, PixelInputs):
        table[torch.from_numpy(ends[slot_R] - 1)] = states_R
        return
    for slot, state_TH, is_valid_T in zip(slot_R.tolist(), states_R, inputs.is_valid_RT.cpu(), strict=True):
        rows_TH = state_TH[is_valid_T]
        table[int(ends[slot]) - len(rows_TH) : int(ends[slot])] = rows_TH
