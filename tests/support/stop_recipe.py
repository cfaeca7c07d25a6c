"""Be a shipped program that sends itself a signal in a step: `... stop_recipe.py STEP PROGRAM arguments`."""

from __future__ import annotations

import itertools
import json
import runpy
import signal
import sys
from pathlib import Path

import torch
from worker_group import run_group

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


def assert_goes_on(home: Path, run: str, *words: object) -> None:
    """A run of the program that is stopped in step 4 and goes on leaves the weights and losses of one that is not."""
    kept, losses = [], []
    for name, steps in (("whole", (0,)), ("stopped", (4, 0))):
        (home / name).mkdir()
        for step in steps:
            done = run_group(1, __file__, step, *words, "--resume", folder=home / name)
            assert done.code == (75 if step else 0), done.said
        folder = home / name / "runs" / run
        files = sorted((folder / "checkpoint").rglob("*.safetensors"))
        kept.append({path.relative_to(folder): path.read_bytes() for path in files})
        lines = (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()
        events = [event for event in map(json.loads, lines) if event["event"] == "train"]
        losses.append([(event["step"], event["loss"]) for event in events])
    assert len(kept[0]) > 1
    assert kept[1] == kept[0]
    assert losses[1] == losses[0]


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
