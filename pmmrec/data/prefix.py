"""What the frozen part of an encoder says of each item: computed once, kept on disk, fetched by row."""
# R rows fetched, T tokens of the longest of them, H width of the backbone.

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pmmrec.contracts import PixelInputs, Prefix, PrefixInputs, PrefixSlots, TokenInputs
from pmmrec.data.prefix_room import INCOMPLETE, INDEX, NoRoomError, Say, make_room, mark_used, remove, silent
from pmmrec.data.releases import made_by
from pmmrec.errors import OTHER_CACHE
from pmmrec.progress import Progress
from pmmrec.settings import Config

Ints = NDArray[np.int64]
FORMAT = 1
STATES, ENDS = "states.bin", "ends.npy"
VERIFIED_BYTES = 4_000_000_000  # larger tables are checked by their size alone: reading them would take minutes
MARK_EVERY_S = 600  # how often a table in use says so
ATTEMPTS = 3  # at a table that other processes take away meanwhile
DEVICE_SHARE = 0.25  # of a GPU's free memory, at most, for all tables of a run
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PrefixConfig(Config):
    """Whether and how states of frozen blocks are kept."""

    use: Literal["auto", "on", "off"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    budget_gb: float = Field(50.0, gt=0)
    makes: bool = True  # False: tables that are there are read, none is made

    @property
    def insists(self) -> bool:
        """Whether it is an error where nothing can be kept."""
        return self.use == "on" and self.makes


class Chunk(NamedTuple):
    """Some items on their way through a frozen part: where they go, and what they are."""

    slot_R: Ints
    inputs: TokenInputs | PixelInputs


@dataclass(frozen=True)
class Wanted:
    """A table that is wanted: what it holds, and how it is made."""

    key: str  # of the contents of the items, as the encoder reads them
    num_rows_R: Ints  # tokens of each distinct text; ones for images
    is_ragged: bool  # texts are; images all have one shape
    chunks: Callable[[], Iterator[Chunk]]  # the most expensive first; called when the table must be made


class PrefixTable:
    """States of distinct contents, valid tokens only, as one memory-mapped file; `open` is the way to one."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.folder, self._marked_s = folder, -math.inf
        self.is_ragged: bool = index["is_ragged"]
        self._ends: Ints = np.load(folder / ENDS, mmap_mode="r", allow_pickle=False)
        self._states = _mapped(folder / STATES).view(DTYPES[index["dtype"]]).view(index["shape"])
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
        wanted: Wanted,
        config: PrefixConfig,
        cache: Path,
        progress: Progress | None = None,
        say: Say = silent,
    ) -> PrefixTable:
        """The table in `cache`, made first when there is none that is whole and `config` makes any.

        Its folder is named after the frozen weights, the preprocessing, the items, the precision and the libraries that
        compute the states, and appears whole, so runs and processes may share it. `say` is told what is removed for it.
        Raises NoRoomError when disk or budget are too small, be it that other processes remove the table as fast as it
        is made, or when none may be made.
        """
        source = f"prefix {FORMAT} {prefix.fingerprint} {wanted.key} {config.precision} {made_by('states')}"
        folder = cache / f"prefix-{hashlib.sha256(source.encode()).hexdigest()[:32]}"
        for _ in range(ATTEMPTS):
            mark_used(folder)  # first, since reading it through to check it takes a while
            if not _is_whole(folder):
                if not config.makes:
                    raise NoRoomError(f"{folder}: no frozen states are kept there, and none are made now")
                try:
                    _make(folder, prefix, wanted, config, progress, say)
                except OSError as error:
                    reason = error.strerror or error
                    raise NoRoomError(
                        f"{cache}: frozen states cannot be kept there: {reason}; name {OTHER_CACHE}"
                    ) from error
            with suppress(FileNotFoundError):  # another process has just removed it
                return cls(folder)
        raise NoRoomError(
            f"{folder}: other processes removed these frozen states {ATTEMPTS} times while they were opened; raise "
            "prefix_budget_gb, or say prefix_cache=off"
        )

    def move_to(self, device: torch.device, room: DeviceRoom) -> None:
        """Keep a copy in the memory of a GPU where there is room; on the CPU the map is as good."""
        if device.type == "cuda" and self._states.device != device and room.grants(device, self.num_bytes):
            self._states = self._states.to(device)

    def fetch(self, slot_R: Ints) -> tuple[Tensor, Tensor]:
        """States of these contents, `(R, T, H)` or `(R, ...)`, and which tokens are valid, `(R, T)` or `(R, 0)`.

        As they are stored, on the device where the table is; right-padded with zeros.
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
        """Now and then, so that long runs keep their tables."""
        if time.monotonic() - self._marked_s > MARK_EVERY_S:
            self._marked_s = time.monotonic()
            mark_used(self.folder)


def _mapped(path: Path) -> Tensor:
    """The bytes of a file, never written to. Mapped for reading alone: a writable map may not exceed the memory."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.memmap(path, dtype=np.uint8, mode="r"))


class DeviceRoom:
    """What all tables of a run may take of a GPU's memory: a share of what is free when the first of them asks."""

    def __init__(self, free_bytes: Callable[[torch.device], int] | None = None) -> None:
        self._free_bytes = free_bytes or _free_bytes
        self._left: dict[torch.device, float] = {}

    def grants(self, device: torch.device, num_bytes: int) -> bool:
        """Whether so much may be taken; if so, it is."""
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
        """Where the states of these items lie; slot -1 stands in where there are none."""
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
        """The states themselves, float32 on `device`. Call it where the model is, not where batches are read ahead."""
        domain_R, slot_R = slots.domain_R.numpy(), slots.slot_R.numpy()
        stands_in = bool(slot_R[0] < 0)
        groups = []
        for domain in np.unique(domain_R):
            places, table = np.flatnonzero(domain_R == domain), self._tables[domain]
            if table is None and stands_in:
                table = next(other for other in self._tables if other is not None)
            assert table is not None  # noqa: S101  slots are given for rows that have states
            table.move_to(device, self._room)
            groups.append((places, *table.fetch(np.maximum(slot_R[places], 0))))
        state_R, is_valid_RT = groups[0][1:] if len(groups) == 1 else _joined(groups, len(slot_R))
        state_R = state_R.to(device).float()
        state_R = torch.zeros_like(state_R) if stands_in else state_R
        return PrefixInputs(state_R, is_valid_RT.to(device), slots.item_index_R.to(device))


def _joined(groups: list[tuple[Ints, Tensor, Tensor]], num_rows: int) -> tuple[Tensor, Tensor]:
    """States and validity of several tables as one, each row in its place."""
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
    folder: Path, prefix: Prefix, wanted: Wanted, config: PrefixConfig, progress: Progress | None, say: Say
) -> None:
    """Compute the states and write them below a temporary name, then rename the folder."""
    dtype, chunks = DTYPES[config.precision], wanted.chunks()
    chunk = next(chunks)
    states_R = prefix.states(chunk.inputs)
    ends = np.cumsum(wanted.num_rows_R)
    shape = (int(ends[-1]), *states_R.shape[2 if wanted.is_ragged else 1 :])
    num_bytes = math.prod(shape) * dtype.itemsize
    incomplete = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}{INCOMPLETE}")
    try:
        incomplete.mkdir(parents=True)
        with (incomplete / STATES).open("wb") as file:
            file.truncate(num_bytes)  # first, so that whoever looks for room at once counts it
            make_room(folder, num_bytes, int(config.budget_gb * 1e9), say)
            _reserve(file, num_bytes)
        flat = torch.from_file(str(incomplete / STATES), shared=True, size=math.prod(shape), dtype=dtype)
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
        del table, flat
        np.save(incomplete / ENDS, ends, allow_pickle=False)
        index = {"format": FORMAT, "dtype": config.precision, "shape": list(shape), "is_ragged": wanted.is_ragged}
        checksums = {name: _sha256(incomplete / name) for name in (STATES, ENDS)}
        (incomplete / INDEX).write_text(json.dumps({**index, "sha256": checksums}), encoding="utf-8")
        _put_in_place(incomplete, folder)
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def _reserve(file: IO[bytes], num_bytes: int) -> None:
    """Have the blocks of a file be there: a full disk is told now, and not by a signal while it is written."""
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


def _put_in_place(incomplete: Path, folder: Path) -> None:
    """Rename; a broken table gives way, a whole one of another process that was faster holds the same and stays."""
    for _ in range(ATTEMPTS):
        with suppress(OSError):
            incomplete.rename(folder)
            return
        if _is_whole(folder):
            return
        remove(folder)
    incomplete.rename(folder)


def _is_whole(folder: Path) -> bool:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        checksums: dict[str, str] = index["sha256"]
        num_bytes = DTYPES[index["dtype"]].itemsize * math.prod(index["shape"])
        if (folder / STATES).stat().st_size != num_bytes:
            return False
        checked = (ENDS, STATES) if num_bytes <= VERIFIED_BYTES else (ENDS,)
        return all(_sha256(folder / name) == checksums[name] for name in checked)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
