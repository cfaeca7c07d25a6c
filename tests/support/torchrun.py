"""Start a program as several processes of this machine, on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys


def torchrun(processes: int, *program: object) -> subprocess.CompletedProcess[str]:
    launch = ["torch.distributed.run", "--standalone", "--nproc_per_node", processes]
    words = [str(word) for word in (sys.executable, "-m", *launch, *program)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        environment.pop(name, None)
    return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=1200, check=False)
