"""The figures of a step are made on the device: building them on the CPU and copying them there would wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pmmrec.train import meter
from pmmrec.train.meter import Forecast, sizes_of
from pmmrec.train.processes import MachineConfig
from pmmrec.train.run import Run
from pmmrec.train.state import StateConfig
from pmmrec.train.states import States


class _Built(TorchDispatchMode):
    """Counts tensors that are built from Python's numbers on the CPU, whatever their device."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, op: Any, types: Sequence[Any], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.count += op is torch.ops.aten.lift_fresh.default
        return op(*args, **(kwargs or {}))


def test_the_counter_sees_what_is_built_on_the_cpu() -> None:
    with _Built() as built:
        torch.tensor(5.0, device="meta")
        torch.empty((), device="meta").new_tensor(5.0)
    assert built.count == 2


def test_the_sizes_of_a_step_are_made_on_the_device(workshop: Callable[..., Any]) -> None:
    batch = next(iter(workshop().batches(16).epoch(1)))
    with _Built() as built:
        sizes = sizes_of(batch)
    assert built.count == 0
    is_valid_BS = batch.windows.is_valid_BS
    told = {name: figure.tolist() for name, figure in sizes.items()}
    counts = {"users": len(is_valid_BS), "slots": int(is_valid_BS.sum()), "items_encoded": batch.items.num_items}
    assert told == {name: [count, 0] for name, count in counts.items()}


def test_a_batch_is_described_by_its_users_inputs_and_items(workshop: Callable[..., Any]) -> None:
    batch = next(iter(workshop().batches(16).epoch(1)))
    num_users, num_positions = batch.windows.is_valid_BS.shape
    assert batch.describe() == f"{num_users} users, {num_positions - 1} inputs and {batch.items.num_items} items"


@pytest.mark.parametrize("minutes", [None, 1e-9])
def test_stop_flags_are_made_on_the_device(tmp_path: Path, minutes: float | None) -> None:
    machine = MachineConfig(device="cpu")
    told = {"reread": str, "to_yaml": lambda: "name: one\n"}
    recipe = SimpleNamespace(folder=tmp_path / "one", machine=machine, name="one", **told)
    with Run.start(recipe) as run:
        states = States(run, StateConfig(every_minutes=minutes), {})
        with _Built() as built:
            stop_flags = states.stop_flags(torch.device("cpu"))
    assert built.count == 0
    assert stop_flags.tolist() == [0.0, float(minutes is not None)]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(meter.time, "monotonic", lambda: now[0])
    return now


def test_a_forecast_counts_the_steps_and_validations_that_are_left(clock: list[float]) -> None:
    forecast = Forecast(num_epochs=3, steps_per_epoch=40)
    forecast.begin_epoch(0)
    clock[0] += 60.0
    assert forecast.words(1, is_at_most=True) == ""  # the first step compiles, allocates, reads for the first time
    clock[0] += 38.0
    assert forecast.words(20, is_at_most=True) == "  ETA epoch 0:00:40, training at most 0:03:20"
    clock[0] += 40.0
    assert forecast.words(40, is_at_most=True) == "  ETA epoch 0:00:00, training at most 0:02:40"
    clock[0] += 30.0  # validation
    forecast.begin_epoch(40)
    clock[0] += 20.0
    assert (
        forecast.words(60, is_at_most=False) == "  ETA epoch 0:00:30, training 0:02:30"
    )  # 60 steps of 1.5 s, 2 x 30 s


def test_a_forecast_resumes_within_an_epoch(clock: list[float]) -> None:
    forecast = Forecast(num_epochs=2, steps_per_epoch=10)
    forecast.begin_epoch(14)
    clock[0] += 8.0
    assert forecast.words(18, is_at_most=False) == "  ETA epoch 0:00:04, training 0:00:04"


def test_users_per_second_exclude_validation(workshop: Callable[..., Any]) -> None:
    class Slow:
        def epoch_ended(self, loop: Any, epoch: int) -> None:
            loop._meter.started_s -= 100_000.0  # as if validation had taken so long

    shop = workshop()
    shop.loop(epochs=2, log_every=1000, callbacks=[Slow()]).fit()
    assert all(event["users_per_s"] > 1.0 for event in shop.events("train"))
