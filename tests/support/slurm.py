"""What stands in for Slurm: its commands as small programs, and the script that it would run."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from pmmrec.shipped import shipped_file

HOSTS = ("gpu-3", "gpu-7")
SRUN = """#!{python}
# A task on each machine with what Slurm tells it. The first that fails ends the others; the highest code is its own.
import os, queue, subprocess, sys, threading

log, words = os.environ["LOG"], sys.argv[2:]
tasks = []
for rank in "01":
    with open(f"{{log}}-{{rank}}", "w") as said:
        environment = {{**os.environ, "SLURM_NODEID": rank}}
        tasks.append(subprocess.Popen(words, env=environment, stdout=said, stderr=subprocess.STDOUT))
with open(log, "a") as file:
    file.write(f"srun {{sys.argv[1]}}\\n")
    file.write("".join(f"task {{task.pid}}\\n" for task in tasks))
ended, left = queue.SimpleQueue(), set(tasks)
for task in tasks:  # each is waited for by a thread of its own: to signal a task is to look whether it has ended
    threading.Thread(target=lambda task=task: (task.wait(), ended.put(task))).start()
while left:
    task = ended.get()
    left.remove(task)
    if task.returncode:
        for other in left:
            other.terminate()
            forced = threading.Timer(30, other.kill)
            forced.daemon = True
            forced.start()
for rank in "01":
    with open(f"{{log}}-{{rank}}") as said:
        print(said.read(), end="")
sys.exit(max(task.returncode if task.returncode >= 0 else 128 - task.returncode for task in tasks))
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf "$HOSTS"; else echo "scontrol $*" >> "$LOG"; fi
"""


def slurm_in(folder: Path) -> None:
    """Let a folder stand in for Slurm: its commands, and `pmmrec` as it is installed."""
    pmmrec = f'#!/usr/bin/env bash\nexec {sys.executable} -c "from pmmrec.cli import app; app()" "$@"\n'
    srun = SRUN.format(python=sys.executable)
    for name, text in {"srun": srun, "scontrol": SCONTROL, "pmmrec": pmmrec}.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)


def job(cluster: Path, *arguments: str, hosts: tuple[str, str] = HOSTS, **environment: str) -> dict[str, Any]:
    """What runs the script as Slurm would."""
    slurm = {"SLURM_JOB_NODELIST": "gpu-[3,7]", "SLURM_JOB_ID": "123456", "LOG": str(cluster / "log")}
    path = {"PATH": f"{cluster}:{os.environ['PATH']}", "HOSTS": "".join(f"{host}\\n" for host in hosts)}
    words = ["bash", str(shipped_file("launch/slurm.sh")), *arguments]
    return {"args": words, "env": {**os.environ, **slurm, **path, **environment}, "text": True}


def log_of(cluster: Path, what: str) -> list[str]:
    """What was noted of calls of Slurm's commands, or of `srun` its tasks."""
    path = cluster / "log"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.removeprefix(f"{what} ") for line in lines if line.startswith(f"{what} ")]
