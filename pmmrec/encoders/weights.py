"""What is checked of the files of weights in a backbone's folder."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from pmmrec.errors import CheckpointError

WEIGHTS = "model.safetensors"
SHARDS = f"{WEIGHTS}.index.json"
# transformers puts adapters that lie beside whole weights on them without a word.
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
LEARNED = (".weight", ".bias")
MAX_LISTED = 3


def refuse_leftovers(folder: Path) -> None:
    """CheckpointError for files that leave open which weights are meant."""
    for name in ADAPTERS:
        if (folder / name).is_file():
            raise CheckpointError(
                f"{folder / name}: adapters beside whole weights leave open whether they count; merge them "
                "(merge_and_unload of peft, then save_pretrained) or move the adapter_* files elsewhere"
            )
    if (folder / WEIGHTS).is_file() and (folder / SHARDS).is_file():
        raise CheckpointError(f"{folder}: holds {WEIGHTS} and {SHARDS}, two sets of weights; remove the older one")


def refuse_integers(folder: Path) -> None:
    """CheckpointError, naming file and tensor, for weights of whole numbers, as quantised files hold."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  not iterable
                kind = tensors.get_slice(name).get_dtype()
                if name.endswith(LEARNED) and not kind.startswith(("F", "BF")):
                    raise CheckpointError(
                        f"{path}: {name} holds numbers of type {kind}, as quantised weights do; take a copy in "
                        "float32, float16 or bfloat16"
                    )


def refuse_broken_numbers(backbone: nn.Module, folder: Path) -> None:
    """CheckpointError, naming file and tensor, where weights that were just read hold NaN or infinity."""
    broken = [name for name, tensor in backbone.state_dict().items() if not is_finite(tensor)]
    if broken:
        named = [f"{path.name}: {name}" for path in sorted(folder.glob("*.safetensors")) for name in _not_finite(path)]
        first = ", ".join((named or broken)[:MAX_LISTED])
        raise CheckpointError(
            f"{folder}: {len(broken)} tensors hold NaN or infinity, such as {first}; take another copy of the weights"
        )


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity.

    A sum takes a tenth of the time that a SHA-256 takes, so every load can afford it; one that overflows proves
    nothing, and only then each number is looked at.
    """
    if not tensor.is_floating_point():
        return True
    numbers = tensor if tensor.element_size() > 1 else tensor.float()  # nobody adds numbers of 8 bits
    return bool(numbers.sum().isfinite()) or bool(numbers.isfinite().all())


def _not_finite(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as tensors:
        return [name for name in tensors.keys() if not is_finite(tensors.get_tensor(name))]  # noqa: SIM118
