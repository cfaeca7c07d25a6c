"""Which blocks of a backbone train, and what keeps the frozen ones still."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from torch import nn
from typing_extensions import Self

from pmmrec.adapters import Sites
from pmmrec.errors import RecipeError

Depth = int | Literal["all"]


@dataclass(frozen=True)
class Layout:
    """Where an architecture keeps its blocks, in regular expressions that a whole name must match.

    Names, not places among the parameters: those shift whenever a library adds a parameter.
    """

    blocks: str  # modules: the blocks, from bottom to top
    # Blocks of encoders that stand beside one another: the top of each trains. (): all blocks are one above another.
    stacks: tuple[str, ...] = ()
    after: str = ""  # modules between the top block and the last hidden state; they train with the top block
    unused: str = ""  # parameters that the last hidden state does not depend on; they never train
    pooler: str = ""  # modules that make one vector of the last hidden state, if asked; they train with the top block
    pools_by: Literal["pooler", "attention"] = "pooler"  # what the pooler is called in settings
    pooler_reads: Literal["states", "cls", "mean"] = "states"
    fixed: str = ""  # parameters that never train, though the last hidden state depends on them
    still: str = ""  # modules that run in eval mode always, though parameters in them may train
    # How a block is called from states alone, which go on through `after`; `backbone`: its whole forward is run, where
    # `embeddings` and frozen blocks pass on what they get; None: not known here.
    block_call: Literal["hidden_and_mask", "hidden", "backbone"] | None = None
    embeddings: str = ""  # modules that the states pass by on their way to the blocks
    checkpoints: bool = True  # whether its library can compute activations of blocks again instead of keeping them
    sites: Sites | None = None  # where adapters stand in a block; None: not known here
    # The map above an activation reads its output times a gate, or after dropout: the two cannot be computed as one.
    is_gated: bool = False


_L = TypeVar("_L", bound=Layout)


def pools_of(layout: Layout, *, has_cls: bool, has_last: bool = False) -> tuple[str, ...]:
    """The ways to pool that an architecture has, by the words of settings."""
    ways = {"cls": has_cls, "mean": True, "max": True, "last": has_last, layout.pools_by: bool(layout.pooler)}
    return tuple(way for way, is_there in ways.items() if is_there)


def pooled_by(layout: _L, pool: str) -> _L:
    """The layout of an encoder that pools so: its pooler is a part of it, or is not used."""
    if pool != layout.pools_by or not layout.pooler:
        return replace(layout, pooler="")
    return replace(layout, unused=rf"(?!{layout.pooler}\.)({layout.unused})")


def find_layout(layouts: Mapping[str, _L], architecture: str, where: str, refused: Mapping[str, str]) -> _L:
    """The layout of `architecture`; RecipeError that says why it is `refused`, or lists the known ones."""
    if architecture in refused:
        raise RecipeError(f"{where}: {architecture!r} is not read: {refused[architecture]}")
    if architecture not in layouts:
        raise RecipeError(f"{where}: {architecture!r} is not known here; known: {', '.join(sorted(layouts))}")
    return layouts[architecture]


def train_top_blocks(backbone: nn.Module, layout: Layout, depth: Depth) -> tuple[str, ...]:
    """Let the top `depth` blocks of `backbone` take gradients, and nothing below; names the modules that train.

    `0` freezes everything, `"all"` trains everything that gets a gradient. RecipeError when there are fewer blocks.
    """
    if depth == "all":
        return _train(backbone, layout, [""])
    stacks = [matching(backbone, pattern) for pattern in layout.stacks or (layout.blocks,)]
    fewest = min(map(len, stacks))
    if depth > fewest:
        raise RecipeError(
            f"trainable_blocks: {depth} asked for, but {type(backbone).__name__} has {fewest}; "
            f"choose 0 to {fewest}, or all"
        )
    return train_blocks(backbone, layout, [name for blocks in stacks for name in blocks[len(blocks) - depth :]])


def train_blocks(backbone: nn.Module, layout: Layout, blocks: Sequence[str]) -> tuple[str, ...]:
    """Let these blocks take gradients and what stands above them, and nothing else; names the modules that train."""
    patterns = (layout.after, layout.pooler) if blocks else ()
    return _train(backbone, layout, [*blocks, *(name for pattern in patterns for name in matching(backbone, pattern))])


def _train(backbone: nn.Module, layout: Layout, trained: Sequence[str]) -> tuple[str, ...]:
    backbone.requires_grad_(False)
    for name in trained:
        backbone.get_submodule(name).requires_grad_(True)
    for name, parameter in backbone.named_parameters():
        if re.fullmatch(layout.unused, name) or re.fullmatch(layout.fixed, name):
            parameter.requires_grad_(False)
    return tuple(trained)


def block_names(backbone: nn.Module, layout: Layout) -> list[str]:
    """Names of the blocks, from bottom to top."""
    return matching(backbone, layout.blocks)


def matching(backbone: nn.Module, pattern: str) -> list[str]:
    """Names of the modules that match a pattern."""
    return [name for name, _ in backbone.named_modules() if name and re.fullmatch(pattern, name)]


class PartlyTrained(nn.Module):
    """A module around a `backbone` whose frozen blocks run in eval mode always, also after `.train()`.

    So dropout and batch statistics of frozen blocks never vary, and their output may be computed once and kept.
    """

    backbone: nn.Module
    _trained: tuple[str, ...] = ()
    _still: tuple[str, ...] = ()

    def train_top_blocks(self, layout: Layout, depth: Depth) -> None:
        """Apply `train_top_blocks` to the backbone and hold its frozen blocks in eval mode from now on."""
        self._trained = train_top_blocks(self.backbone, layout, depth)
        self._still = tuple(matching(self.backbone, layout.still))
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.eval()
        for name in self._trained:
            self.backbone.get_submodule(name).train(mode)
        for name in self._still:
            self.backbone.get_submodule(name).eval()
        return self
