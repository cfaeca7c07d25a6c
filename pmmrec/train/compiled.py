"""Compile the repeated blocks of a model with torch.compile, each block by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pmmrec.launch import Spread

SETTING = "machine.compile"


def compile_blocks(
    blocks: Sequence[nn.Module], device: torch.device, spread: Spread, backend: str | Any = "inductor"
) -> str:
    """Compile blocks in place, for inputs of any length; returns a line for people that says what was done.

    Equal blocks share their code, and the lengths of a batch are symbols, so that later batches compile nothing anew.
    Attention over packed rows is run as it is: its groups of rows change with every batch. Where nothing can be
    compiled, the blocks stay as they are, and the line says why. Their names and states stay in any case.
    """
    why = _obstacle(device, spread, backend) if blocks else "the model has no repeated blocks"
    if why is not None:
        return f"{SETTING}: {why}; blocks run as they are"
    torch._dynamo.config.suppress_errors = True  # a block that cannot be compiled runs as it is
    # The first step goes back through its graph twice, for the norms of the gradients that it tells.
    torch._functorch.config.donated_buffer = False
    for block in blocks:
        block.compile(dynamic=True, backend=backend)
    return f"{SETTING}: {len(blocks)} blocks are compiled when they are first met; the first steps take longer"


def _obstacle(device: torch.device, spread: Spread, backend: Any) -> str | None:
    """Why nothing can be compiled here; None where a small function can."""
    if spread not in (Spread.ONE, Spread.DDP):
        return f"does not work under {spread.value}"

    def probe(x: Tensor) -> Tensor:
        return (x * 2).relu() + 1

    try:
        torch.compile(probe, backend=backend)(torch.ones(8, device=device))
    except Exception as error:  # noqa: BLE001  # a compiler may be missing, or fail in any way
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        return f"torch.compile does not work on this machine ({' '.join(lines[:2])[:200]})"
    return None
