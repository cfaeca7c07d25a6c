"""Be a shipped program that sends itself a signal in a step: `... stop_recipe.py STEP PROGRAM arguments`."""

from __future__ import annotations

import itertools
import runpy
import signal
import sys

import torch

from pmmrec.contracts import Batch
from pmmrec.train.prepare import Batches


def main(step: int, words: list[str]) -> None:
    """Run the program; no signal comes in step 0."""
    to_device, count = Batches.to_device, itertools.count(1)

    def signalled(self: Batches, batch: Batch, device: torch.device) -> Batch:
        if next(count) == step:
            signal.raise_signal(signal.SIGTERM)
        return to_device(self, batch, device)

    Batches.to_device = signalled
    sys.argv = words
    runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
