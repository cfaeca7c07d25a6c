"""Notice that a training is far slower than the same training was on this machine before."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

from typing_extensions import Self

from pmmrec.atomic import whole_file
from pmmrec.settings import Config
from pmmrec.train.processes import Processes
from pmmrec.train.task import TrainingTask

PACE_FILE = "pace.json"  # in the folder of a run: which training it was, and its median rate
SLOW = 0.5  # of the rate before
_UNTIMED = ("epochs", "log_every", "state", "on_nonfinite", "step_minutes", "phase_hours")  # change no step
FEW_LINES = 3  # of the log; a rate is the median of so many at least


class Pace:
    """The rate of a training, in users per second, kept in its run folder and compared with that of its siblings."""

    def __init__(self, folder: Path | None, training: Mapping[str, Any]) -> None:
        """`folder`: of the run; None: nothing is kept. `training`: equal if steps are the same work."""
        facts = {**training, "machine": platform.node(), "cores": os.cpu_count()}
        self._key = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]
        self._folder, self._rates = folder, list[float]()
        self._before = {} if folder is None else _rates_of(folder.absolute().parent.glob(f"*/{PACE_FILE}"), self._key)
        self._is_told = False

    @classmethod
    def of(cls, folder: Path | None, config: Config, task: TrainingTask, processes: Processes, steps: int) -> Self:
        """Of a training with these settings (`train` of the recipe) and `steps` an epoch."""
        settings = config.model_dump(mode="json", exclude=set(_UNTIMED))
        machine = {"device": processes.device.type, "processes": processes.world}
        return cls(folder, {**machine, "train": settings, "parts": task.sizes, "steps": steps})

    def hint(self, users_per_s: float) -> str | None:
        """Add the rate of a line of the log; returns what to tell, once, if it is far lower than before."""
        self._rates.append(users_per_s)
        recent = median(self._rates[-FEW_LINES:])
        if len(self._rates) < FEW_LINES or self._is_told:
            return None
        known = {**self._before, "this run": median(self._rates)}
        where, best = max(known.items(), key=lambda entry: entry[1])
        if recent >= SLOW * best:
            return None
        self._is_told = True
        load = f"; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
        run = "earlier in this run" if where == "this run" else f"the same training had in {where}"
        return f"{recent:.0f} users/s, less than half of the {best:.0f} {run}{load}; something else may use the machine"

    def keep(self) -> None:
        """Write the median rate of the run so far into its folder. MachineError where that cannot be written."""
        if self._folder is None or len(self._rates) < FEW_LINES:
            return
        with whole_file(self._folder / PACE_FILE) as draft:
            draft.write_text(json.dumps({"training": self._key, "users_per_s": round(median(self._rates), 1)}) + "\n")


def _rates_of(files: Iterable[Path], key: str) -> dict[str, float]:
    """The rate of each run that kept one for this training, by the name of its folder."""
    kept = {file.parent.name: _read(file) for file in files}
    return {name: rate for name, (training, rate) in kept.items() if training == key}


def _read(file: Path) -> tuple[str, float]:
    """The training and the rate in a file; empty and 0 where it is broken."""
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
        return str(kept["training"]), float(kept["users_per_s"])
    except (OSError, ValueError, LookupError, TypeError):
        return "", 0.0
