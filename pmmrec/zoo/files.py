"""Write folders completely or not at all, and read untrusted files safely."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from pmmrec.atomic import flush, make_folder, sole_writer, writing_to
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.homes import expanded

INDEX_NAME = "model_index.json"
MAX_JSON_BYTES = 64_000_000
MAX_HEADER_BYTES = 100_000_000
MAX_LISTED = 8
_BLOCK_BYTES = 1 << 20
INCOMPLETE, PREVIOUS = ".incomplete", ".previous"
_RUNS_CODE = ("auto_map", "trust_remote_code", "custom_pipelines")


def listed(names: Iterable[str]) -> str:
    """The first few names in order, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def is_leftover(folder: Path) -> bool:
    """Whether the folder is a temporary one of a save that is running or was killed."""
    return folder.name.endswith((INCOMPLETE, PREVIOUS))


def current(folder: Path) -> Path:
    """Where the content of `folder` is now.

    A save killed between its two renames leaves the old content beside `folder`. It is read there and not moved back,
    so that readers never race with a later save.
    """
    if folder.exists():  # checked first, since `.` and `/` have no name to extend
        return folder
    previous = folder.with_name(folder.name + PREVIOUS)
    return previous if previous.is_dir() else folder


@contextmanager
def writing(folder: Path, *, replace: bool) -> Iterator[Path]:
    """Yield a new folder that becomes `folder` when the block succeeds and is deleted when it fails.

    `current(folder)` always holds either the old content or the new, completely.

    Raises RecipeError for a folder that exists (with `replace`, unless it holds a checkpoint) or that another process
    is writing, MachineError when the disk cannot be written.
    """
    folder = expanded(folder).resolve()
    _refuse_taken(folder, replace=replace)
    incomplete, previous = folder.with_name(folder.name + INCOMPLETE), folder.with_name(folder.name + PREVIOUS)
    with writing_to(folder):
        make_folder(folder.parent)
        with sole_writer(folder):
            _refuse_taken(folder, replace=replace)  # again: it may have been written before the lock was acquired
            _settle(folder, incomplete, previous)
            try:
                incomplete.mkdir()
                yield incomplete
                _flush(incomplete)
                if folder.exists():
                    folder.rename(previous)
                incomplete.rename(folder)
                flush(folder.parent)
                shutil.rmtree(previous, ignore_errors=True)
            finally:
                shutil.rmtree(incomplete, ignore_errors=True)


def _refuse_taken(folder: Path, *, replace: bool) -> None:
    here = current(folder)
    if not here.exists():
        return
    if not replace:
        raise RecipeError(f"{folder}: exists already; choose another name or ask to replace it")
    if not (here / INDEX_NAME).is_file():
        raise RecipeError(f"{folder}: holds no {INDEX_NAME}, so it is not a checkpoint and is not replaced")


def _settle(folder: Path, incomplete: Path, previous: Path) -> None:
    """Clean up after a killed save."""
    if incomplete.exists():
        shutil.rmtree(incomplete)
    if previous.exists() and folder.exists():
        shutil.rmtree(previous)
    elif previous.exists():
        previous.rename(folder)


def _flush(folder: Path) -> None:
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it where the file system cannot link."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def files_below(folder: Path) -> list[str]:
    """Sorted relative paths of all files in a folder, with `/`."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def is_inside(name: str) -> bool:
    """Whether a path from an index is relative and stays in its folder on every operating system."""
    path = PurePosixPath(name)
    is_plain = bool(name) and name == path.as_posix() and not any(sign in name for sign in "\\:\0")
    return is_plain and not path.is_absolute() and ".." not in path.parts and name != "."


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def hashes_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder."""
    return {name: sha256_of(folder / name) for name in files_below(folder)}


def changes(folder: Path, expected: Mapping[str, str]) -> list[str]:
    """Problems with the listed files of a folder, one line each; empty if all are intact."""
    return [
        f"{name} {problem}"
        for name, digest in sorted(expected.items())
        if (problem := absence(folder, name) or _change(folder / name, digest))
    ]


def absent(folder: Path, names: Iterable[str]) -> list[str]:
    """Which of the listed files are not in the folder, one line each."""
    return [f"{name} {problem}" for name in sorted(names) if (problem := absence(folder, name))]


def absence(folder: Path, name: str) -> str:
    """Why a file is not in the folder; "" if it is."""
    path = folder / name
    if not path.is_file():
        return "is missing"
    is_within = path.resolve().is_relative_to(folder.resolve())
    return "" if is_within else "is a link out of the folder (copy the file itself there)"


def _change(path: Path, digest: str) -> str:
    return "" if sha256_of(path) == digest else "was changed after it was written (sha256 differs)"


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises CheckpointError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes; it should be a short text")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; NaN and infinity become null, since JSON cannot express them."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refuse_code(folder: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError for a configuration that makes a library run code from elsewhere."""
    for name in names:
        if name.endswith("config.json"):
            key = _key_that_runs_code(read_json(folder / name))
            if key:
                raise CheckpointError(f"{folder / name}: {key!r} runs code from elsewhere; remove it")


def _key_that_runs_code(value: Any) -> str | None:
    """The first key that makes transformers import or download code; `attn_implementation` may name a hub kernel."""
    if not isinstance(value, Mapping):
        return None
    for key, entry in value.items():
        if key in _RUNS_CODE or ("_implementation" in key and "/" in str(entry)):
            return str(key)
        if inner := _key_that_runs_code(entry):
            return inner
    return None


def standalone(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous; a view is cloned, so that only its own elements are written."""
    plain = tensor.detach().cpu().contiguous()
    is_view = plain.untyped_storage().nbytes() != plain.numel() * plain.element_size()
    return plain.clone() if is_view else plain


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file. Raises MachineError when the disk cannot be written."""
    with writing_to(path):
        save_file(dict(tensors), path, metadata={"format": "pt"})


def sharing(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that share memory with another; safetensors cannot store such tensors."""
    owners: dict[tuple[torch.device, int], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            owners.setdefault((tensor.device, tensor.data_ptr()), []).append(name)
    return [name for names in owners.values() if len(names) > 1 for name in names]


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, read from its header.

    Raises CheckpointError for any other file (a pickle, a truncated file, a false header) before memory is allocated.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header_bytes = int.from_bytes(file.read(8), "little")
        if size < 8 or header_bytes > min(size - 8, MAX_HEADER_BYTES):
            raise CheckpointError(
                f"{path}: not a safetensors file, or cut short: its header does not fit {size:,} bytes"
            )
        with safe_open(path, framework="pt") as tensors:
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error


def sizes_in(folder: Path, names: Iterable[str]) -> list[int]:
    """Number of elements of each tensor in the safetensors files among `names`, read from their headers."""
    shapes = [shapes_in(folder / name).values() for name in names if name.endswith(".safetensors")]
    return [math.prod(shape) for shapes_of_file in shapes for shape in shapes_of_file]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file to the CPU. Raises CheckpointError."""
    shapes_in(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    return tensors
