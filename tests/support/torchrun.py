"""Start a program as several processes of this machine, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

ON_CPU = {"ACCELERATE_USE_CPU": "true"}
FSDP2 = {**ON_CPU, "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


def zero(stage: int) -> dict[str, str]:
    """What the environment says for DeepSpeed; told to use the CPU, Accelerate would leave it out."""
    told = {"ZERO_STAGE": str(stage), "ZERO3_INIT": "false", "ZERO3_SAVE_16BIT_MODEL": "true"}
    deepspeed = {f"ACCELERATE_DEEPSPEED_{name}": value for name, value in told.items()}
    return {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", **deepspeed}


def torchrun(processes: int, *program: object, spread: Mapping[str, str] = ON_CPU) -> subprocess.CompletedProcess[str]:
    """`spread`: what the environment says of how weights are shared out; DDP."""
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    words = [str(word) for word in (sys.executable, "-m", *launch, *program)]
    environment = {**os.environ, **spread, "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200, check=False)
