"""The parts of an estimate, each beside what it estimates."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from pmmrec.data.batches import DataConfig
from pmmrec.data.examples.windows import WindowIndex
from pmmrec.data.mixing import StepSampler
from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.train.config import TrainConfig
from pmmrec.train.memory import Drawing, Launched, Need, Shares, memory_lines
from pmmrec.train.memory_simulation import Kernels, StepMemory, StepSize, step_memory
from pmmrec.train.optim import build_optimizer
from pmmrec.train.processes import MachineConfig
from pmmrec.train.rowwise import choose_tables
from pmmrec.train.task import TrainingTask

SHARDED = (Spread.ZERO1, Spread.ZERO2, Spread.ZERO3)


@pytest.fixture
def partly(reading: Any) -> TrainingTask:
    """A model of texts and images whose vision encoder is frozen."""
    task: TrainingTask = reading.task
    task.recommender.item_encoder.vision_encoder.requires_grad_(False)
    return task


@pytest.fixture
def four(tmp_path: Path) -> Iterator[None]:
    """This process is the first of four; of the others nothing comes."""
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


def stepped(task: TrainingTask, batch: Any) -> torch.optim.Optimizer:
    """An optimiser after a step; gradients are left."""
    optimizer = build_optimizer(task, TrainConfig().optimizer)
    losses = [sums[0] / sums[1] for name, sums in task(batch).items() if name in task.weights]
    torch.stack(losses).sum().backward()
    optimizer.step()
    return optimizer


def num_bytes(tensors: Any) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def test_one_process_holds_the_bytes_of_weights_gradients_and_moments(partly: TrainingTask, reading: Any) -> None:
    optimizer = stepped(partly, reading.batch)
    shares = Shares.of(partly, Spread.ONE, 1)
    assert shares.weights == num_bytes([*partly.parameters(), *partly.buffers()])
    assert shares.gradients == num_bytes(p.grad for p in partly.parameters() if p.grad is not None)
    assert shares.optimizer == num_bytes(value for state in optimizer.state.values() for value in state.values())
    assert shares.exchange == 0


def test_a_table_that_learns_by_rows_has_a_gradient_of_the_rows_that_a_step_reads(workshop: Any) -> None:
    task = workshop().task.to("meta")
    rows = task.recommender.item_encoder.item_table
    table = rows.vector = nn.Embedding(10_000, rows.vector.embedding_dim, device="meta")
    size, kernels = StepSize(users=2, positions=3, filled=1.0, items=4, encoded=4, tokens=0), Kernels(on_gpu=False)
    whole, of_step = Shares.of(task, Spread.ONE, 1), step_memory(task, size, kernels, ())
    assert choose_tables(task, "rows", Spread.ONE)
    by_rows = Shares.of(task, Spread.ONE, 1, rows_read=3)
    assert whole.gradients - by_rows.gradients == 4 * (table.num_embeddings - 3) * table.embedding_dim
    assert by_rows.optimizer == whole.optimizer
    assert step_memory(task, size, kernels, ()).with_gradients < of_step.with_gradients - 0.9 * table.weight.nbytes


def test_ddp_holds_its_gradients_twice(partly: TrainingTask, reading: Any, tmp_path: Path) -> None:
    dist.init_process_group("gloo", rank=0, world_size=1, store=dist.FileStore(str(tmp_path / "store"), 1))
    wrapped = DistributedDataParallel(partly)
    stepped(wrapped.module, reading.batch)
    buckets = wrapped._get_ddp_logging_data()["bucket_sizes"]
    dist.destroy_process_group()
    shares = Shares.of(partly, Spread.DDP, 4)
    assert shares.exchange == shares.gradients == sum(int(size) for size in buckets.split(","))
    assert shares.weights == Shares.of(partly, Spread.ONE, 1).weights


def test_fsdp2_holds_the_first_quarter_of_each_tensor(partly: TrainingTask, four: None) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from pmmrec.train.spread import blocks_of

    shares = Shares.of(partly, Spread.FSDP2, 4)
    whole = Shares.of(partly, Spread.ONE, 1)
    mesh = init_device_mesh("cpu", (4,))
    for block in blocks_of(partly.recommender):
        fully_shard(block, mesh=mesh)
    fully_shard(partly, mesh=mesh)
    own = [(p.to_local(), p.requires_grad) for p in partly.parameters() if isinstance(p, DTensor)]
    assert shares.weights == num_bytes(tensor for tensor, _ in own) + num_bytes(partly.buffers())
    assert shares.gradients == num_bytes(tensor for tensor, learns in own if learns)
    assert shares.exchange < whole.weights + whole.gradients


def test_zero_shares_out_the_optimiser_then_gradients_then_weights() -> None:
    task: Any = nn.Linear(1000, 1001, bias=False)  # 1,001,000 numbers
    small = nn.Parameter(torch.zeros(100_000))
    task.register_parameter("small", small)
    one, two, three = (Shares.of(task, spread, 4) for spread in SHARDED)
    quarter = -(-1_101_000 // 4)
    assert one.weights == two.weights == 4 * 1_101_000
    assert three.weights == 4 * (quarter + 100_000)  # tensors of up to 100,000 numbers are whole as well
    assert [one.gradients, two.gradients, three.gradients] == [4 * 1_101_000, 4 * quarter, 4 * quarter]
    # Two processes on the CPU held so much: two moments, weights once more, and a count of steps.
    assert one.optimizer == two.optimizer == three.optimizer == 12 * quarter + 4
    assert one.exchange == two.exchange == 4 * 500_000_000
    assert three.exchange == 4 * (500_000_000 + 1_001_000)


def test_gradients_are_counted_where_activations_were() -> None:
    step = StepMemory(batch=10, activations=600, with_gradients=650)
    alone = Need.of(Shares(100, 100, 200, 0), step, 1, Spread.ONE, on_gpu=False)
    assert alone.fullest == 100 + 200 + 10 + 650
    sharded = Need.of(Shares(100, 50, 200, 30), step, 1, Spread.ZERO2, on_gpu=False)
    assert sharded.fullest == 100 + 200 + 30 + 10 + 600 + 50
    tiny = StepMemory(batch=10, activations=20, with_gradients=110)
    assert Need.of(Shares(100, 100, 200, 0), tiny, 1, Spread.ONE, on_gpu=True).fullest == 100 + 200 + 10 + 100 + 100


@pytest.fixture
def drawing(workshop: Any) -> Drawing:
    sources, data, train = workshop().sources, DataConfig(), TrainConfig(batch_users=16)
    windows = [WindowIndex(split, data.window) for split in sources.splits]
    sampler = StepSampler([index.num_examples for index in windows], sources.names, 16, 1, data.mixing)
    return Drawing(sources, data, windows, sampler, train, 1)


@pytest.mark.parametrize("number", [1, 3])
def test_sizes_are_those_of_the_first_steps(drawing: Drawing, workshop: Any, number: int) -> None:
    shop = workshop()
    batches = iter(shop.batches(16).epoch(1))
    first = [next(batches) for _ in range(min(4, drawing.sampler.steps_per_epoch))]
    fullest = max(first, key=lambda batch: batch.items.num_items)
    size = drawing.as_drawn(shop.task, number)
    num_users, num_positions = fullest.windows.is_valid_BS.shape
    assert (size.items, size.positions) == (fullest.items.num_items, num_positions)
    assert (size.users, size.encoded) == (-(-num_users // number), -(-size.items // number))
    assert round(size.filled * num_users * (num_positions - 1)) == int(fullest.windows.has_next_BL.sum())
    assert sorted(size.windows) == sorted(fullest.windows.is_valid_BS.sum(dim=1).tolist())
    assert (size.tokens, size.texts) == (0, ())  # the model reads no text


def test_lines_tell_users_negatives_and_every_part(drawing: Drawing, workshop: Any) -> None:
    task = copy.deepcopy(workshop().task).to("meta")
    launched = Launched.read("two_cpu", 3, is_plan=True)
    assert launched is not None
    lines = memory_lines(task, drawing, launched, MachineConfig(device="cpu"))
    assert lines[:2] == [
        "memory of each process (two_cpu: DDP over 3 processes, fp32, on the CPU):",
        "a step: up to 16 users, 5 or 6 in each of 3 processes; negatives: of all processes",
    ]
    names = [line[:16].strip() for line in lines[3:10]]
    assert names == ["weights", "gradients", "optimiser", "exchange", "batch", "activations", "at the fullest"]


@pytest.mark.parametrize(
    ("name", "number", "is_plan", "told"),
    [
        ("ddp", None, False, "this program starts no processes"),
        (None, 2, True, "has no effect without --launch"),
        ("one_gpu", 2, True, "is for one process, not 2"),
    ],
)
def test_a_launch_that_nobody_plans_is_refused(name: str | None, number: int | None, is_plan: bool, told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        Launched.read(name, number, is_plan=is_plan)
