"""Compiled blocks: the same numbers, nothing compiled anew for other lengths, and a line where nothing can be."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from pmmrec.blocks import TransformerBlock
from pmmrec.data.batches import DataConfig
from pmmrec.launch import Spread
from pmmrec.packing import packing_of
from pmmrec.train.compiled import compile_blocks
from pmmrec.train.log import RunLog
from pmmrec.train.prepare import Batches
from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.spread import blocks_of, prepare_task

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    suppresses, donates = torch._dynamo.config.suppress_errors, torch._functorch.config.donated_buffer
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._dynamo.config.suppress_errors = suppresses
    torch._functorch.config.donated_buffer = donates


def stack() -> nn.ModuleList:
    torch.manual_seed(0)
    return nn.ModuleList(TransformerBlock(8, 2, dropout=0.0) for _ in range(2))


def states_and_gradients(blocks: nn.ModuleList, seed: int, *, last_alone: bool = False) -> list[Tensor]:
    """Of rows whose lengths and number depend on the seed; `last_alone`: of their last places."""
    draw = np.random.default_rng(seed)
    packing, _ = packing_of(draw.integers(1, 9, size=draw.integers(5, 9)))
    torch.manual_seed(seed)
    x_KD = torch.randn(packing.num_places, 8, requires_grad=True)
    hidden_KD = x_KD
    for place, block in enumerate(blocks):
        is_asked = last_alone and place == len(blocks) - 1
        hidden_KD = block(hidden_KD, packing, is_causal=seed % 2 == 0, last_alone=is_asked)
    return [hidden_KD, *torch.autograd.grad(hidden_KD.square().sum(), [x_KD, *blocks.parameters()])]


def test_other_lengths_compile_nothing_anew() -> None:
    plain, compiled, counter = stack(), stack(), CompileCounter()
    assert compile_blocks(list(compiled), CPU, Spread.ONE, counter).startswith("machine.compile: 2 blocks are compiled")
    counter.clear()
    for seed in range(6):
        pairs = zip(states_and_gradients(compiled, seed), states_and_gradients(plain, seed), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs)
        if seed == 0:
            num_compiled = counter.frame_count
    assert counter.frame_count == num_compiled > 0
    assert compiled.state_dict().keys() == plain.state_dict().keys()


def test_the_last_places_alone_are_compiled_and_soon_nothing_anew() -> None:
    plain, compiled, counter, counts = stack(), stack(), CompileCounter(), []
    compile_blocks(list(compiled), CPU, Spread.ONE, counter)
    for seed in range(8):
        both = (states_and_gradients(blocks, seed, last_alone=True) for blocks in (compiled, plain))
        assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))
        counts.append(counter.frame_count)
    assert counts[-1] == counts[len(counts) // 2] > 0, counts


def test_a_whole_model_compiles_in_its_first_steps_alone(reading) -> None:
    task, counter, processes = copy.deepcopy(reading.task), CompileCounter(), Processes(MachineConfig(device="cpu"))
    rules: Any = (DataConfig(), reading.sources, reading.reader, task, 12, 1, processes, RunLog(None, is_main=False))
    batches = [batch for _, batch in zip(range(6), Batches(*rules).epoch(1), strict=False)]
    expected = [reading.task(batch) for batch in batches]
    blocks = blocks_of(task.recommender)
    assert len(blocks) > 3
    compile_blocks(blocks, CPU, Spread.ONE, counter)
    seen = []
    for batch, figures in zip(batches, expected, strict=True):
        assert all(torch.equal(value, figures[name]) for name, value in task(batch).items())
        seen.append(counter.frame_count)
    assert seen[0] > len({type(block) for block in blocks})
    assert seen[1:] == [seen[1]] * (len(batches) - 1)


@pytest.mark.long  # a C++ compiler makes the code
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_generated_code_computes_the_same() -> None:
    plain, compiled = stack(), stack()
    line = compile_blocks(list(compiled), CPU, Spread.ONE)
    assert line == "machine.compile: 2 blocks are compiled when they are first met; the first steps take longer"
    for one, other in zip(states_and_gradients(compiled, 0), states_and_gradients(plain, 0), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)  # float32, sums of gradients; measured 8e-6


@pytest.mark.long  # a C++ compiler makes the code
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a C++ compiler on a CPU")
def test_gradients_of_generated_code_can_be_taken_twice() -> None:
    """As the first step of a run takes them, once for the norms that it tells."""
    blocks, (packing, _) = stack(), packing_of(np.array([4, 3, 2]))
    compile_blocks(list(blocks), CPU, Spread.ONE)
    hidden_KD = torch.randn(packing.num_places, 8, requires_grad=True)
    for block in blocks:
        hidden_KD = block(hidden_KD, packing, is_causal=True)
    once, again = (
        torch.autograd.grad(hidden_KD.square().sum(), list(blocks.parameters()), retain_graph=retain)
        for retain in (True, False)
    )
    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


def test_blocks_run_as_they_are_where_nothing_can_be_compiled() -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("no compiler here\nand more words")

    plain, compiled = stack(), stack()
    line = compile_blocks(list(compiled), CPU, Spread.ONE, broken)
    assert line.startswith("machine.compile: torch.compile does not work on this machine (")
    assert "no compiler here" in line
    assert "\n" not in line
    assert line.endswith("); blocks run as they are")
    pairs = zip(states_and_gradients(compiled, 1), states_and_gradients(plain, 1), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_sharded_weights_and_models_without_blocks_are_left_alone(workshop) -> None:
    line = compile_blocks(list(stack()), CPU, Spread.FSDP2)
    assert line == "machine.compile: does not work under FSDP2; blocks run as they are"
    assert "no repeated blocks" in compile_blocks([], CPU, Spread.ONE)


def test_the_recipe_asks_for_it(workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop, said = workshop(), list[str]()
    monkeypatch.setattr(RunLog, "say", lambda _, line: said.append(line))
    monkeypatch.setattr("pmmrec.train.spread.compile_blocks", lambda blocks, *_: f"{len(blocks)} blocks")
    prepare_task(shop.processes, shop.task, shop.log)
    assert said == []
    prepare_task(Processes(MachineConfig(device="cpu", compile=True)), shop.task, shop.log)
    assert said == ["1 blocks"]
