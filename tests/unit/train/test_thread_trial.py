"""Timing the first batch with several numbers of threads leaves no trace in the training that follows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pmmrec.train.thread_trial import settle_threads
from pmmrec.train.threads import ThreadChoice, using_threads


def _trained(workshop: Any, threads: ThreadChoice, number: int) -> tuple[Any, list[ThreadChoice]]:
    """Train with `number` threads after the threads were settled; what was chosen."""
    shop = workshop(dropout=0.3)
    loop, batches, chosen = shop.loop(epochs=1), shop.batches(16), []
    settle_threads(SimpleNamespace(threads=threads, processes=shop.processes, use_threads=chosen.append), loop, batches)
    with using_threads(number):
        loop.fit()
    return shop, chosen


@pytest.mark.parametrize("number", [1, 2])
def test_a_training_is_equal_to_the_bit_to_one_with_this_number_set(workshop: Any, number: int) -> None:
    timed, chosen = _trained(workshop, ThreadChoice(2, "free", most=2), number)
    plain, settled = _trained(workshop, ThreadChoice(number, "set"), number)
    assert chosen[0].why.startswith("a step takes ")
    assert settled == [ThreadChoice(number, "set")]
    pairs = zip(timed.task.state_dict().values(), plain.task.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    losses = [[{**event, "time_s": 0, "users_per_s": 0} for event in shop.events("train")] for shop in (timed, plain)]
    assert losses[0] == losses[1]
    assert all(tensor.grad is None for tensor in timed.task.parameters())
