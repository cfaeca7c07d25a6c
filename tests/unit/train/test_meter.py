"""What a step tells of itself is made on the device: nothing is built on the CPU and copied there, which would wait."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pmmrec.train.meter import sizes_of
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


@pytest.mark.parametrize("minutes", [None, 1e-9])
def test_what_a_process_wants_of_the_run_is_told_on_the_device(tmp_path: Path, minutes: float | None) -> None:
    machine = MachineConfig(device="cpu")
    recipe = SimpleNamespace(folder=tmp_path / "one", machine=machine, name="one", to_yaml=lambda: "name: one\n")
    with Run.start(recipe) as run:
        states = States(run, StateConfig(every_minutes=minutes), {})
        with _Built() as built:
            wishes = states.wishes(torch.device("cpu"))
    assert built.count == 0
    assert wishes.tolist() == [0.0, float(minutes is not None)]
