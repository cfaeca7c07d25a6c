"""Write a folder whole or not at all, and read files that others wrote without trusting them."""

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
    """The first few names, and how many more there are."""
    names = sorted(names)
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more


def is_leftover(folder: Path) -> bool:
    """Whether the folder is what a save in progress, or a killed one, keeps beside its checkpoint."""
    return folder.name.endswith((INCOMPLETE, PREVIOUS))


def current(folder: Path) -> Path:
    """Where the content of `folder` stands now.

    A save killed between its two renames leaves the old content beside `folder`; reading it there changes nothing on
    disk, so readers and a later save never race.
    """
    if folder.exists():  # asked first, since `.` and `/` have no name that could be lengthened
        return folder
    previous = folder.with_name(folder.name + PREVIOUS)
    return previous if previous.is_dir() else folder


@contextmanager
def writing(folder: Path, *, replace: bool) -> Iterator[Path]:
    """A place to fill, which becomes `folder` when the block ends well and vanishes when it does not.

    At every moment `current(folder)` is the old content or the new, whole. Raises RecipeError for a folder that
    exists (unless `replace`, and then only a checkpoint is replaced) or that another process writes, and MachineError
    when the disk refuses.
    """
    folder = expanded(folder).resolve()
    _refuse_taken(folder, replace=replace)
    incomplete, previous = folder.with_name(folder.name + INCOMPLETE), folder.with_name(folder.name + PREVIOUS)
    with writing_to(folder):
        make_folder(folder.parent)
        with sole_writer(folder):
            _refuse_taken(folder, replace=replace)  # once more: it may have been written before the lock was ours
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
    """Tidy what a killed save left behind."""
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
    """Put a file into another folder without copying its bytes where the file system allows it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def files_below(folder: Path) -> list[str]:
    """Paths of all files in a folder, relative, with `/`, sorted."""
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def is_inside(name: str) -> bool:
    """Whether a relative path, as an index writes it, stays in its folder on every system."""
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
    """What is wrong with those files of a folder, in words; empty when each is there and as it was written."""
    return [
        f"{name} {problem}"
        for name, digest in sorted(expected.items())
        if (problem := absence(folder, name) or _change(folder / name, digest))
    ]


def absent(folder: Path, names: Iterable[str]) -> list[str]:
    """Which of those files are not in the folder itself, in words."""
    return [f"{name} {problem}" for name in sorted(names) if (problem := absence(folder, name))]


def absence(folder: Path, name: str) -> str:
    """Why a file is not in the folder itself; "" where it is."""
    path = folder / name
    if not path.is_file():
        return "is missing"
    is_within = path.resolve().is_relative_to(folder.resolve())
    return "" if is_within else "is a link out of the folder (copy the file itself there)"


def _change(path: Path, digest: str) -> str:
    return "" if sha256_of(path) == digest else "was changed after it was written (sha256 differs)"


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises CheckpointError."""
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_JSON_BYTES:,} bytes; it should be a short text")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON: {error}") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file; figures that are not finite become null, since JSON has no word for them."""
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def refuse_code(folder: Path, names: Iterable[str]) -> None:
    """Raise CheckpointError where a library's configuration asks for code from elsewhere."""
    for name in names:
        if name.endswith("config.json"):
            asked = _asks_for_code(read_json(folder / name))
            if asked:
                raise CheckpointError(f"{folder / name}: {asked!r} runs code from elsewhere; remove it")


def _asks_for_code(value: Any) -> str | None:
    """The first key that makes transformers import or download code: an `attn_implementation` may name a hub kernel."""
    if not isinstance(value, Mapping):
        return None
    for key, entry in value.items():
        if key in _RUNS_CODE or ("_implementation" in key and "/" in str(entry)):
            return str(key)
        if inner := _asks_for_code(entry):
            return inner
    return None


def standalone(tensor: Tensor) -> Tensor:
    """The tensor on the CPU, contiguous, in memory of its own size: a view would be written as what it views."""
    plain = tensor.detach().cpu().contiguous()
    is_view = plain.untyped_storage().nbytes() != plain.numel() * plain.element_size()
    return plain.clone() if is_view else plain


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file. Raises MachineError when the disk refuses."""
    with writing_to(path):
        save_file(dict(tensors), path, metadata={"format": "pt"})


def sharing(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that lie in the same memory as another; safetensors cannot tell such tensors apart."""
    owners: dict[tuple[torch.device, int], list[str]] = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            owners.setdefault((tensor.device, tensor.data_ptr()), []).append(name)
    return [name for names in owners.values() if len(names) > 1 for name in names]


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a safetensors file, from its header alone.

    Raises CheckpointError for anything else (a pickle under that name, a cut or inflated file), before allocating.
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
    """How many numbers each tensor of those of the files that are safetensors holds, from their headers alone."""
    shapes = [shapes_in(folder / name).values() for name in names if name.endswith(".safetensors")]
    return [math.prod(shape) for of_file in shapes for shape in of_file]


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU. Raises CheckpointError."""
    shapes_in(path)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a whole safetensors file: {error}") from error
    return tensors
