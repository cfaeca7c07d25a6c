"""The averaged weights are validated and kept, training goes on as without them, and a resumed run has the same."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from attempts import train
from torch import Tensor, nn

from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.launch import Spread
from pmmrec.train.average import Average, AverageConfig
from pmmrec.train.loop import Loop

DECAY = 0.6
AVERAGE = {"decay": DECAY}


def average_by_loops(weights: list[list[float]], decay: float) -> list[float]:
    """The average after all steps, number by number; the first row are the weights before training."""
    averaged = list(weights[0])
    for step, row in enumerate(weights[1:], start=1):
        share = min(decay, (1 + step) / (10 + step))
        for place, number in enumerate(row):
            averaged[place] = share * averaged[place] + (1 - share) * number
    return averaged


def test_the_average_is_that_of_a_loop_over_numbers() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2).double()
    layer.bias.requires_grad_(False)
    average = Average(AverageConfig(decay=DECAY), layer, Spread.ONE)
    assert [*average.tensors] == ["weight"]  # what does not learn needs no average
    seen = [layer.weight.detach().flatten().tolist()]
    for step in range(1, 30):
        with torch.no_grad():
            layer.weight.add_(torch.randn(2, 3, dtype=torch.float64))
        average.update(step)
        seen.append(layer.weight.detach().flatten().tolist())
    expected = torch.tensor(average_by_loops(seen, DECAY), dtype=torch.float64)
    torch.testing.assert_close(average.tensors["weight"].flatten(), expected, rtol=0, atol=1e-12)  # measured 1e-15
    last = layer.weight.detach().clone()
    with average.in_place():
        assert torch.equal(layer.weight, average.tensors["weight"])
    assert torch.equal(layer.weight, last)


def test_training_is_the_same_and_what_is_validated_and_kept_is_the_average(workshop) -> None:
    plain, averaged, kept = workshop(), workshop(), list[dict[str, Tensor]]()

    class Keep:
        def epoch_ended(self, loop: Loop, epoch: int) -> None:
            kept.append({name: tensor.clone() for name, tensor in loop.state_dict().items()})

    plain.loop(epochs=2).fit()
    loop = averaged.loop(callbacks=[Keep()], epochs=2, average=AVERAGE)
    loop.fit()
    for name, tensor in plain.task.state_dict().items():
        assert torch.equal(tensor, averaged.task.state_dict()[name])
    for name, tensor in loop._average.tensors.items():
        assert torch.equal(kept[-1][name], tensor)
    assert any(not torch.equal(kept[-1][name], plain.task.state_dict()[name]) for name in loop._average.tensors)
    assert all(torch.equal(kept[0][name], tensor) for name, tensor in workshop().task.state_dict().items())


@pytest.mark.parametrize("stop", [{"at_step": 7}, {"ranking": 2}, {"at_epoch": 2}])
def test_a_resumed_run_goes_on_with_the_average(tmp_path: Path, world: Path, stop: dict[str, Any]) -> None:
    attempt = partial(train, tmp_path, world, average=AVERAGE)
    whole, _ = attempt("whole"), attempt("cut", **stop)
    again = attempt("cut", resume=True)
    assert again.loop.validation == whole.loop.validation
    for name, tensor in whole.loop._average.tensors.items():
        assert torch.equal(again.loop._average.tensors[name], tensor)
    assert all(torch.equal(again.weights[name], tensor) for name, tensor in whole.weights.items())


def test_shards_and_the_average_of_other_weights_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"train.average: needs whole weights in every process, and ZeRO-2 shards"):
        Average(AverageConfig(), nn.Linear(2, 2), Spread.ZERO2)
    Average(None, nn.Linear(2, 2), Spread.ZERO2)
    with pytest.raises(CheckpointError, match="averages other weights"):
        Average(AverageConfig(), nn.Linear(2, 2), Spread.ONE).restore({"weight": torch.zeros(2, 2)})
