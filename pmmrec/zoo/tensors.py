"""Describe the tensors of a file and compare them with the description in the index."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open

from pmmrec.encoders.weights import is_finite
from pmmrec.errors import CheckpointError
from pmmrec.zoo import files

SUFFIX = ".safetensors"
_WRITTEN = re.compile(r"([A-Z][A-Z0-9_]*)\[((?:\d{1,18},)*\d{1,18})?\] ([0-9a-f]{64})")
_BLOCK_BYTES = 1 << 20


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a file, written as `F32[768,3072] SHA-256`."""

    dtype: str  # name in safetensors: F32, BF16, I64
    shape: tuple[int, ...]
    sha256: str  # of its bytes, without the header

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(map(str, self.shape))}] {self.sha256}"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


Tensors = Mapping[str, TensorEntry]


@dataclass(frozen=True)
class Promise:
    """What an index says about one file: its SHA-256, and a description of each tensor if it holds tensors."""

    sha256: str
    tensors: Tensors | None = None


def parse(written: Any) -> Any:
    """Parse the written form of a tensor entry. Raises ValueError."""
    if not isinstance(written, str):
        return written
    found = _WRITTEN.fullmatch(written)
    if found is None:
        raise ValueError("a tensor must look like 'F32[768,3072] SHA-256'")
    return TensorEntry(found[1], tuple(int(size) for size in found[2].split(",")) if found[2] else (), found[3])


def promises_of(folder: Path) -> dict[str, Promise]:
    """Describe every file in a folder, reading each once."""
    return {
        name: _promise_of_tensors(folder / name) if name.endswith(SUFFIX) else Promise(files.sha256_of(folder / name))
        for name in files.files_below(folder)
    }


def _promise_of_tensors(path: Path) -> Promise:
    """Describe a safetensors file. Raises CheckpointError for any other file."""
    files.shapes_in(path)  # safetensors rejects inconsistent headers
    whole, tensors = hashlib.sha256(), {}
    with path.open("rb") as file, ThreadPoolExecutor(1) as beside:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
        whole.update(length + header)
        for name, dtype, shape, num_bytes in _entries(path, header):
            own = hashlib.sha256()
            for start in range(0, num_bytes, _BLOCK_BYTES):
                block = file.read(min(num_bytes - start, _BLOCK_BYTES))
                hashed = beside.submit(own.update, block)
                whole.update(block)
                hashed.result()
            tensors[name] = TensorEntry(dtype, shape, own.hexdigest())
        whole.update(file.read())
    return Promise(whole.hexdigest(), tensors)


def _entries(path: Path, header: bytes) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Name, dtype, shape and number of bytes of each tensor, in file order."""
    try:
        tree = json.loads(header)
        tree.pop("__metadata__", None)
        ordered = sorted(tree.items(), key=lambda item: item[1]["data_offsets"])
        return [
            (name, str(about["dtype"]), tuple(about["shape"]), about["data_offsets"][1] - about["data_offsets"][0])
            for name, about in ordered
        ]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: its header makes no sense: {error}") from error


def damages(folder: Path, promises: Mapping[str, Promise]) -> list[str]:
    """Problems with the listed files of a folder, one line each; empty if all are intact."""
    return [
        f"{name} {problem}"
        for name, promise in sorted(promises.items())
        if (problem := files.absence(folder, name) or _changed(folder / name, promise))
    ]


def _changed(path: Path, promise: Promise) -> str:
    reason = damage(path, promise)
    return f"was changed after it was written ({reason})" if reason else ""


def damage(path: Path, promise: Promise) -> str:
    """How a file differs from its description, tensor by tensor if those are described; "" if it does not."""
    if promise.tensors is None:
        return "" if files.sha256_of(path) == promise.sha256 else "sha256 differs"
    try:
        found = _promise_of_tensors(path)
    except CheckpointError as error:
        reason = str(error).removeprefix(f"{path}: ")
        return reason if files.sha256_of(path) == promise.sha256 else f"sha256 differs; {reason}"
    wrong = differences(found.tensors or {}, promise.tensors)
    if found.sha256 != promise.sha256:
        return "; ".join(["sha256 differs", *(wrong or ["only its header differs, every tensor is unchanged"])])
    return "; ".join([f"its tensors are not those that {files.INDEX_NAME} lists", *wrong]) if wrong else ""


def differences(found: Tensors, promised: Tensors) -> list[str]:
    """Differences between tensors and their descriptions, one phrase for each kind of change."""
    missing, extra = set(promised) - set(found), set(found) - set(promised)
    renamed = _renamed({name: promised[name] for name in missing}, {name: found[name] for name in extra})
    both = [name for name in promised if name in found]
    words = {
        "missing": missing - set(renamed),
        "extra": extra - set(renamed.values()),
        "renamed": {f"{old} to {new}" for old, new in renamed.items()},
        "reshaped": {
            f"{name} {found[name].shape} for {promised[name].shape}"
            for name in both
            if found[name].shape != promised[name].shape
        },
        "of another type": {
            f"{name} {found[name].dtype} for {promised[name].dtype}"
            for name in both
            if found[name].shape == promised[name].shape and found[name].dtype != promised[name].dtype
        },
        "other numbers in": {
            name
            for name in both
            if (found[name].shape, found[name].dtype) == (promised[name].shape, promised[name].dtype)
            and found[name].sha256 != promised[name].sha256
        },
    }
    return [f"{what}: {files.listed(names)}" for what, names in words.items() if names]


def not_finite(path: Path) -> list[str]:
    """Names of the tensors of a safetensors file that hold NaN or infinity. Raises CheckpointError."""
    with safe_open(path, framework="pt") as tensors:
        return [name for name in files.shapes_in(path) if not is_finite(tensors.get_tensor(name))]


def _renamed(missing: Tensors, extra: Tensors) -> dict[str, str]:
    """Map old to new names of tensors with the same bytes; each is used once, since many tensors are all zeros."""
    left = dict(sorted(extra.items()))
    found = {}
    for old, entry in sorted(missing.items()):
        new = next((name for name, other in left.items() if other == entry), None)
        if new is not None:
            found[old] = new
            del left[new]
    return found
