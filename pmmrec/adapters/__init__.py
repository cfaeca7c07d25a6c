"""Adapters: a few trainable tensors inserted into a pretrained part whose own tensors are frozen."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from pmmrec.errors import RecipeError
from pmmrec.family import Family
from pmmrec.settings import PartConfig

BASE = "base_layer."  # prefix that peft gives the tensors of a wrapped module


def _ignore(num_blocks: int) -> None:
    del num_blocks


@dataclass(frozen=True)
class Sites:
    """The modules of a block that adapters attach to, as regular expressions that must match the whole name."""

    query_value: str  # linear layers adapted by LoRA and DoRA
    key_value: str  # linear layers whose output IA3 rescales
    attention: tuple[str, str]  # first module of the sub-layer and its last linear layer
    feed_forward: tuple[str, str]
    uncalled: str = ""  # linear layers whose weights are used without a call, where adapters would have no effect


@dataclass(frozen=True)
class Host:
    """A stack of blocks that adapters can be inserted into."""

    module: nn.Module
    path: str  # of the module in its part; "" if it is the part itself
    architecture: str  # name for messages
    blocks: tuple[str, ...]  # names in the module, bottom first
    sites: Sites | None  # None: not known for this architecture
    known: tuple[str, ...]  # architectures whose sites are known, for messages
    learns_from_top: Callable[[int], None] = _ignore  # called with the number of top blocks that are trained

    def in_part(self, name: str) -> str:
        """Turn a name in the module into a name in the part."""
        return f"{self.path}.{name}" if self.path else name

    def at(self, pattern: str, blocks: Sequence[str]) -> list[str]:
        """Names of the modules in `blocks` that match `pattern`."""
        return [
            name for block in blocks for name in self._below(block) if re.fullmatch(pattern, name[len(block) + 1 :])
        ]

    def linear_layers(self, blocks: Sequence[str]) -> list[str]:
        """Names of the linear layers in `blocks` that are called."""
        uncalled = set(self.at(self.sites.uncalled, blocks)) if self.sites is not None else ()
        below = [name for block in blocks for name in self._below(block) if name not in uncalled]
        return [name for name in below if isinstance(self.sub(name), nn.Linear)]

    def sub(self, name: str) -> nn.Module:
        """The submodule of that name."""
        return self.module.get_submodule(name)

    def _below(self, block: str) -> list[str]:
        return [f"{block}.{name}" for name, _ in self.sub(block).named_modules() if name]


class AdapterConfig(PartConfig):
    """Settings common to all kinds of adapters."""

    blocks: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        "all", description="Number of top blocks with adapters; the output of the frozen blocks below may be cached."
    )


class Adapter(ABC):
    """A kind of adapter, built as `part_class(config)`. Its tensors are stored in the modules of the host."""

    is_mergeable: bool  # whether the adapters can be merged into the weights of the host

    @abstractmethod
    def insert(self, host: Host, blocks: Sequence[str], where: str) -> tuple[str, ...]:
        """Insert new adapters into blocks of the host, which still computes the same.

        Args:
            host: The stack of blocks.
            blocks: Names of the blocks to adapt.
            where: Path of the setting, which begins the message of an error.

        Returns the names of the modules that hold the tensors of the adapters. Raises RecipeError for targets that the
        host does not have.
        """

    @abstractmethod
    def merge(self, host: Host, holders: Sequence[str]) -> None:
        """Merge the adapters into the weights of the host, in place. Raises RecipeError where they cannot be merged."""

    def write_settings(self, host: Host, folder: Path) -> None:
        """Write the settings that another library needs to read the tensors; our own adapters need none."""
        del host, folder

    def name_on_disk(self, name: str) -> str:
        """Name in the adapter file of a tensor of the host."""
        return name


def adapter_tensors(host: Host, holders: Sequence[str]) -> list[str]:
    """Names in the host of all adapter tensors."""
    return [f"{at}.{key}" for at in holders for key in host.sub(at).state_dict() if not key.startswith(BASE)]


def chosen_blocks(host: Host, config: AdapterConfig, where: str) -> tuple[str, ...]:
    """The blocks to adapt. Raises RecipeError where there are too few, or the architecture is not known."""
    if host.sites is None:
        raise RecipeError(
            f"{where}: adapters are not supported in {host.architecture}; supported: {', '.join(host.known)}"
        )
    if config.blocks == "all":
        return host.blocks
    if config.blocks > len(host.blocks):
        raise RecipeError(
            f"{where}.blocks: {config.blocks} asked for, but {host.architecture} has {len(host.blocks)}; "
            f"choose up to that, or all"
        )
    return host.blocks[-config.blocks :]


def chosen_targets(host: Host, blocks: Sequence[str], names: Sequence[str], where: str) -> list[str]:
    """The linear layers in `blocks` whose names end with one of `names`. Raises RecipeError where one has no match."""
    there = host.linear_layers(blocks)
    chosen: list[str] = []
    for name in names:
        found = [full for full in there if full == name or full.endswith(f".{name}")]
        if not found:
            top = blocks[-1]
            shown = ", ".join(full.removeprefix(f"{top}.") for full in there if full.startswith(f"{top}."))
            raise RecipeError(f"{where}.targets: {host.architecture} has no linear layer {name!r}; a block has {shown}")
        chosen += [full for full in found if full not in chosen]
    return [full for full in there if full in chosen]


def sites_of(host: Host) -> Sites:
    """The sites of a host that passed `chosen_blocks`."""
    if host.sites is None:
        raise ValueError(f"{host.architecture}: its adapter sites are not known")
    return host.sites


adapters: Family[Adapter] = Family("adapter", home=__name__)
