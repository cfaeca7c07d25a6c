"""Three steps of a model that is sharded over processes (FSDP2), from its state where there is one: `... OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from pmmrec.train.processes import MachineConfig, Processes
from pmmrec.train.snapshot import TrainerState
from pmmrec.train.state import Position, StateFolder, read_state


def main(out: Path) -> None:
    """Leave a state and, in `weights-STEP.safetensors`, the whole weights."""
    processes = Processes(MachineConfig(device="cpu"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()  # 5 rows: uneven shards
    if processes.world > 1:
        mesh = init_device_mesh("cpu", (processes.world,))
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = AdamW(model.parameters(), lr=0.1)
    scheduler = LambdaLR(optimizer, lambda step: 0.9**step)
    memory = TrainerState(processes, model, optimizer, scheduler)
    states, done = StateFolder(out / "state"), 0
    processes.wait()
    if found := states.found():
        state = read_state(found[0])
        done = state.facts["step"]
        memory.restore(state)
    for step in range(done, done + 3):
        x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        model(x).square().mean().backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    state = memory.capture()
    if processes.is_main:
        facts = {**state.facts, "step": done + 3}
        states.save(Position(done + 3, 1), type(state)(facts, state.tensors), None)
        weights = {name: tensor for name, tensor in state.tensors.items() if name.startswith("model/")}
        save_file(weights, out / f"weights-{done + 3}.safetensors")
    processes.wait()
    processes.end()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
