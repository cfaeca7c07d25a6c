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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pmmrec.contracts import PixelInputs, Prefix, PrefixInputs, PrefixSlots, TokenInputs
from pmmrec.errors import MachineError
from pmmrec.progress import Progress
from pmmrec.settings import Config

Ints = NDArray[np.int64]
FORMAT = 1
INDEX, STATES, ENDS = "index.json", "states.bin", "ends.npy"
SPARE_BYTES = 100_000_000  # left free on the disk of a cache
VERIFIED_BYTES = 4_000_000_000  # larger tables are checked by their size alone: reading them would take minutes
IN_USE_S = 3600  # a table that was opened so lately is never removed for another
DEVICE_SHARE = 0.25  # of a GPU's free memory, at most, for one table
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PrefixConfig(Config):
    """Whether and how states of frozen blocks are kept."""

    use: Literal["auto", "on", "off"] = "auto"
    precision: Literal["float32", "bfloat16"] = "float32"
    budget_gb: float = Field(50.0, gt=0)


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
    chunks: Iterator[Chunk]  # the most expensive first; drawn from only when the table must be made


class NoRoomError(MachineError):
    """The disk or the budget is too small for a table."""


class PrefixTable:
    """States of distinct contents, valid tokens only, as one memory-mapped file; `open` is the way to one."""

    def __init__(self, folder: Path) -> None:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        self.folder = folder
        self.is_ragged: bool = index["is_ragged"]
        self._ends: Ints = np.load(folder / ENDS, mmap_mode="r", allow_pickle=False)
        dtype, shape = DTYPES[index["dtype"]], tuple(index["shape"])
        flat = torch.from_file(str(folder / STATES), shared=False, size=math.prod(shape), dtype=dtype)
        self._states = flat.view(shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return PrefixTable, (self.folder,)  # a worker process maps the file again

    @property
    def num_bytes(self) -> int:
        return self._states.numel() * self._states.element_size()

    @classmethod
    def open(
        cls, prefix: Prefix, wanted: Wanted, config: PrefixConfig, cache: Path, progress: Progress | None = None
    ) -> PrefixTable:
        """The table in `cache`, made first when there is none that is whole.

        Its folder is named after the frozen weights, the preprocessing, the items and the precision, and appears whole,
        so runs and processes may share it. Raises NoRoomError when disk or budget are too small.
        """
        source = f"prefix {FORMAT} {prefix.fingerprint} {wanted.key} {config.precision}"
        folder = cache / f"prefix-{hashlib.sha256(source.encode()).hexdigest()[:32]}"
        if not _is_whole(folder):
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, prefix, wanted, config, progress)
        os.utime(folder / INDEX)  # the least recently used table is the first to go
        return cls(folder)

    def move_to(self, device: torch.device) -> None:
        """Keep a copy in the memory of a GPU where that leaves plenty; on the CPU the map is as good."""
        if device.type == "cuda" and self._states.device != device:
            free, _ = torch.cuda.mem_get_info(device)
            if self.num_bytes <= DEVICE_SHARE * free:
                self._states = self._states.to(device)

    def fetch(self, slot_R: Ints) -> tuple[Tensor, Tensor]:
        """States of these contents, `(R, T, H)` or `(R, ...)`, and which tokens are valid, `(R, T)` or `(R, 0)`.

        Float32, on the device where the table is; right-padded with zeros.
        """
        device = self._states.device
        end_R = torch.from_numpy(self._ends[slot_R])
        if not self.is_ragged:
            return self._states[(end_R - 1).to(device)].float(), torch.zeros(len(slot_R), 0, dtype=torch.bool)
        start_R = torch.from_numpy(np.where(slot_R > 0, self._ends[slot_R - 1], 0))
        place_T = torch.arange(int((end_R - start_R).max()))
        is_valid_RT = place_T < (end_R - start_R)[:, None]
        row_RT = torch.where(is_valid_RT, start_R[:, None] + place_T, 0)
        state_RTH = self._states[row_RT.to(device)].float()
        return torch.where(is_valid_RT.to(device)[:, :, None], state_RTH, 0.0), is_valid_RT


class PrefixTables:
    """The tables of one encoder over the domains of a run."""

    def __init__(self, tables: Sequence[PrefixTable | None], slots: Sequence[Ints]) -> None:
        self._tables = list(tables)  # None: a domain without the modality
        self._slots = list(slots)  # of each row of a domain

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
        """The states themselves, on `device`. Call it where the model is, not in a process that only reads ahead."""
        domain_R, slot_R = slots.domain_R.numpy(), slots.slot_R.numpy()
        groups = []
        for domain in np.unique(domain_R):
            places, table = np.flatnonzero(domain_R == domain), self._tables[domain]
            stands_in = slot_R[0] < 0
            if table is None and stands_in:
                table = next(other for other in self._tables if other is not None)
            assert table is not None  # noqa: S101  slots are given for rows that have states
            table.move_to(device)
            state, is_valid = table.fetch(np.maximum(slot_R[places], 0))
            groups.append((places, torch.zeros_like(state) if stands_in else state, is_valid))
        if len(groups) == 1:
            _, state_R, is_valid_RT = groups[0]
            return PrefixInputs(state_R.to(device), is_valid_RT.to(device), slots.item_index_R.to(device))
        longest = max(is_valid.shape[1] for _, _, is_valid in groups)
        first = groups[0][1]
        shape = (len(slot_R), longest, *first.shape[2:]) if longest else (len(slot_R), *first.shape[1:])
        state_R = torch.zeros(shape, device=first.device)
        is_valid_RT = torch.zeros(len(slot_R), longest, dtype=torch.bool)
        for places, state, is_valid in groups:
            at = torch.from_numpy(places)
            if longest:
                state_R[at.to(first.device), : state.shape[1]] = state.to(first.device)
                is_valid_RT[at, : is_valid.shape[1]] = is_valid
            else:
                state_R[at.to(first.device)] = state.to(first.device)
        return PrefixInputs(state_R.to(device), is_valid_RT.to(device), slots.item_index_R.to(device))


def _make(folder: Path, prefix: Prefix, wanted: Wanted, config: PrefixConfig, progress: Progress | None) -> None:
    """Compute the states and write them below a temporary name, then rename the folder."""
    dtype, chunks = DTYPES[config.precision], wanted.chunks
    first = next(chunks)
    states_R = prefix.states(first.inputs)
    ends = np.cumsum(wanted.num_rows_R)
    shape = (int(ends[-1]), *states_R.shape[2 if wanted.is_ragged else 1 :])
    _make_room(folder.parent, math.prod(shape) * dtype.itemsize, config)
    incomplete = folder.with_name(f".{folder.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.incomplete")
    try:
        incomplete.mkdir(parents=True)
        flat = torch.from_file(str(incomplete / STATES), shared=True, size=math.prod(shape), dtype=dtype)
        table, num_done = flat.view(shape), 0
        while True:
            _write(table, ends, first.slot_R, states_R, first.inputs)
            num_done += len(first.slot_R)
            if progress is not None:
                progress("frozen states", num_done, len(ends))
            following = next(chunks, None)
            if following is None:
                break
            first, states_R = following, prefix.states(following.inputs)
        del table, flat
        np.save(incomplete / ENDS, ends, allow_pickle=False)
        index = {"format": FORMAT, "dtype": config.precision, "shape": list(shape), "is_ragged": wanted.is_ragged}
        checksums = {name: _sha256(incomplete / name) for name in (STATES, ENDS)}
        (incomplete / INDEX).write_text(json.dumps({**index, "sha256": checksums}), encoding="utf-8")
        _rename(incomplete, folder)
    except OSError as error:
        raise MachineError(f"{folder.parent}: frozen states cannot be kept there: {error}") from error
    finally:
        shutil.rmtree(incomplete, ignore_errors=True)


def _write(table: Tensor, ends: Ints, slot_R: Ints, states_R: Tensor, inputs: TokenInputs | PixelInputs) -> None:
    states_R = states_R.to("cpu", table.dtype)
    if isinstance(inputs, PixelInputs):
        table[torch.from_numpy(ends[slot_R] - 1)] = states_R
        return
    for slot, state_TH, is_valid_T in zip(slot_R.tolist(), states_R, inputs.is_valid_RT.cpu(), strict=True):
        rows_TH = state_TH[is_valid_T]
        table[int(ends[slot]) - len(rows_TH) : int(ends[slot])] = rows_TH


def _rename(incomplete: Path, folder: Path) -> None:
    """Another process may have been faster with the same bytes; then its folder stays."""
    try:
        incomplete.rename(folder)
    except OSError:
        if not _is_whole(folder):
            raise


def _make_room(cache: Path, num_bytes: int, config: PrefixConfig) -> None:
    """Remove tables unused for longest until budget and disk hold `num_bytes` more; NoRoomError if they never do."""
    cache.mkdir(parents=True, exist_ok=True)
    budget = int(config.budget_gb * 1e9)
    tables = sorted((path for path in cache.glob("prefix-*") if (path / INDEX).exists()), key=_last_used)
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in tables}
    while tables:
        is_full = sum(sizes[path] for path in tables) + num_bytes > budget
        if not is_full and shutil.disk_usage(cache).free >= num_bytes + SPARE_BYTES:
            break
        oldest = tables.pop(0)
        if time.time() - _last_used(oldest) < IN_USE_S:
            break
        shutil.rmtree(oldest, ignore_errors=True)
    free, held = shutil.disk_usage(cache).free, sum(sizes[path] for path in tables if path.exists())
    if held + num_bytes > budget:
        raise NoRoomError(
            f"{cache}: frozen states need {num_bytes:,} bytes and {held:,} are kept there in use; prefix_budget_gb "
            f"allows {budget:,}: raise it, or say prefix_cache=off"
        )
    if free < num_bytes + SPARE_BYTES:
        raise NoRoomError(
            f"{cache}: frozen states need {num_bytes:,} bytes, {free:,} are free; free some, "
            "name another cache, or say prefix_cache=off"
        )


def _last_used(folder: Path) -> float:
    return (folder / INDEX).stat().st_mtime


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
