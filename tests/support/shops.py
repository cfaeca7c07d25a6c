"""Two domains whose items have equal ids, for tests of batches."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pmmrec.contracts import Batch, PixelSpec, TextSpec, Windows
from pmmrec.data.batches import BatchBuilder, DataConfig, Division
from pmmrec.data.examples.windows import WindowConfig
from pmmrec.data.items import ItemReader
from pmmrec.data.mixing import MixingConfig
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.requests import DrawnNegatives, Noised, Requests, View, WindowRequest

NOISY = Noised(shuffle=0.5, replace=0.3)


class Shops:
    """Two domains whose items have equal ids, and everything that a builder needs of them."""

    def __init__(self, make_domain: Any, tokenizer: Any, cache: Path) -> None:
        draw = random.Random(0)
        self.sequences = [
            [draw.choices(range(9), k=draw.randint(4, 10)) for _ in range(count)] + [list(range(9))]
            for count in (13, 6)
        ]
        texts = [*(" ".join(["word"] * (1 + row)) for row in range(8)), None]
        self.domains = [
            make_domain(sequences, name, texts=texts, images=[1, 4, 8])
            for name, sequences in zip(("first", "second"), self.sequences, strict=True)
        ]
        self.splits = [leave_one_out(domain) for domain in self.domains]
        self.reader = ItemReader(self.domains, {"text": TextSpec(tokenizer), "image": PixelSpec(size=8)}, cache)

    def builder(
        self,
        *asked: View | WindowRequest,
        negatives: DrawnNegatives | None = None,
        window: WindowConfig | None = None,
        mixing: MixingConfig | None = None,
        batch_users: int = 6,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        gather: bool = False,
        parts: int = 1,
        last_alone: bool = False,
    ) -> BatchBuilder:
        config = DataConfig(window=window or WindowConfig(size=5), mixing=mixing or MixingConfig())
        windows = [one for one in asked if isinstance(one, WindowRequest)]
        views = [one for one in asked if isinstance(one, View)]
        requests = Requests.of(*windows, negatives=negatives, views=views, last_alone=last_alone)
        division = Division(rank, world, gather, parts)
        return BatchBuilder(self.splits, self.reader, config, requests, batch_users, seed, division)


def epoch_of(builder: BatchBuilder, epoch: int = 0) -> list[Batch]:
    return [builder.build(epoch, step) for step in range(builder.steps_per_epoch)]


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for entry in value.values():
            yield from tensors_of(entry)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_of(getattr(value, name))


def without_places(windows: Windows) -> Windows:
    """The windows and their masks: places count the users of one process."""
    passes = {
        request: dataclasses.replace(of_pass, at_targets=None, at_inputs=None)
        for request, of_pass in windows.passes.items()
    }
    return dataclasses.replace(windows, passes=passes, at_next=None, at_counted=None)


def assert_same(left: Batch, right: Batch) -> None:
    assert left.user_id == right.user_id
    pairs = list(zip(tensors_of(left), tensors_of(right), strict=True))
    assert len(pairs) >= 10
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=0, atol=0)
