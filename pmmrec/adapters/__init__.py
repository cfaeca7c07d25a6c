"""Adapters: a few tensors that learn beside those of a pretrained part, which stay as they are."""

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

BASE = "base_layer."  # what peft calls the tensors of a module that it wraps


def _nothing(num_blocks: int) -> None:
    del num_blocks


@dataclass(frozen=True)
class Sites:
    """Modules that adapters stand at, in regular expressions that a whole name below a block must match."""

    query_value: str  # linear maps that LoRA and DoRA widen
    key_value: str  # linear maps whose output IA3 rescales
    attention: tuple[str, str]  # the module that its input meets first, and the linear map that its output leaves
    feed_forward: tuple[str, str]
    uncalled: str = ""  # linear maps whose weights are read without a call, so that nothing beside them would be heard


@dataclass(frozen=True)
class Host:
    """A stack of blocks that may carry adapters."""

    module: nn.Module
    path: str  # of the module in its part; "" where it is the part
    architecture: str  # for messages, as is `known`
    blocks: tuple[str, ...]  # names in the module, from bottom to top
    sites: Sites | None  # None: where adapters would stand is not known here
    known: tuple[str, ...]  # architectures whose sites are known
    learns_from_top: Callable[[int], None] = _nothing  # told in how many of the top blocks anything learns

    def in_part(self, name: str) -> str:
        """The name in the part of what is called `name` in the module."""
        return f"{self.path}.{name}" if self.path else name

    def at(self, pattern: str, blocks: Sequence[str]) -> list[str]:
        """Names of the modules below `blocks` that match."""
        return [
            name for block in blocks for name in self._below(block) if re.fullmatch(pattern, name[len(block) + 1 :])
        ]

    def linear_maps(self, blocks: Sequence[str]) -> list[str]:
        """Names of the linear maps below `blocks` that are called."""
        uncalled = set(self.at(self.sites.uncalled, blocks)) if self.sites is not None else ()
        below = [name for block in blocks for name in self._below(block) if name not in uncalled]
        return [name for name in below if isinstance(self.sub(name), nn.Linear)]

    def sub(self, name: str) -> nn.Module:
        """The module of that name."""
        return self.module.get_submodule(name)

    def _below(self, block: str) -> list[str]:
        return [f"{block}.{name}" for name, _ in self.sub(block).named_modules() if name]


class AdapterConfig(PartConfig):
    """Settings that every kind of adapters has."""

    blocks: Annotated[int, Field(ge=1)] | Literal["all"] = Field(
        "all", description="How many of the top blocks carry them; frozen blocks below may be computed once."
    )


class Adapter(ABC):
    """A kind of adapters, built as `part_class(config)`. Its tensors live in the modules of the host."""

    is_mergeable: bool  # whether the host can become plain weights that compute the same

    @abstractmethod
    def insert(self, host: Host, blocks: Sequence[str], where: str) -> tuple[str, ...]:
        """Put fresh adapters into those blocks of the host; names of the modules that hold their tensors.

        At the start the host computes what it did before. RecipeError, which begins with `where`, for targets that
        the host has not.
        """

    @abstractmethod
    def merge(self, host: Host, holders: Sequence[str]) -> None:
        """Turn host and adapters into plain weights, in place. RecipeError where they cannot be."""

    def write_settings(self, host: Host, folder: Path) -> None:
        """Write beside the tensors what another library needs to read them; there is none for our own."""
        del host, folder

    def name_on_disk(self, name: str) -> str:
        """What a tensor of the host is called in the file of adapters."""
        return name


def adapter_tensors(host: Host, holders: Sequence[str]) -> list[str]:
    """Names in the host of all tensors of its adapters."""
    return [f"{at}.{key}" for at in holders for key in host.sub(at).state_dict() if not key.startswith(BASE)]


def chosen_blocks(host: Host, config: AdapterConfig, where: str) -> tuple[str, ...]:
    """The blocks that are to carry adapters. RecipeError where there are fewer, or their sites are not known."""
    if host.sites is None:
        raise RecipeError(
            f"{where}: where adapters stand in {host.architecture} is not known here; known: {', '.join(host.known)}"
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
    """The linear maps in `blocks` whose names end in one of `names`. RecipeError for a name that none ends in."""
    there = host.linear_maps(blocks)
    chosen: list[str] = []
    for name in names:
        found = [full for full in there if full == name or full.endswith(f".{name}")]
        if not found:
            top = blocks[-1]
            shown = ", ".join(full.removeprefix(f"{top}.") for full in there if full.startswith(f"{top}."))
            raise RecipeError(f"{where}.targets: {host.architecture} has no linear map {name!r}; a block has {shown}")
        chosen += [full for full in found if full not in chosen]
    return [full for full in there if full in chosen]


def sites_of(host: Host) -> Sites:
    """Where adapters stand, of a host that was asked by `chosen_blocks` before."""
    if host.sites is None:
        raise ValueError(f"{host.architecture}: its sites are not known")
    return host.sites


adapters: Family[Adapter] = Family("adapter", home=__name__)
