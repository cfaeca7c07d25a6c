"""Mirror a run in Accelerate's trackers, none of which is ever waited for."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

import psutil
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from pmmrec.errors import not_installed

Tracker = Literal["wandb", "tensorboard"]


PROJECT = "pmmrec"
MAX_WAITING = 10_000  # lines that a tracker may be behind
CLOSING_S = 60.0  # for what it has not sent at the end


class OpenTracker(Protocol):
    """An open tracker. Any of its methods may raise or hang: the run goes on without it."""

    def show(self, numbers: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def end_services(tracker: str) -> None:
    """End the processes that a tracker started and talks to, so that this process does not wait for them at its end."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.name().startswith(f"{tracker}-"):
                child.kill()


def tracker_openers(
    trackers: Sequence[Tracker], folder: Path, project: str | None, name: str, recipe: str
) -> dict[str, Callable[[], OpenTracker]]:
    """What opens each tracker; MachineError where one is not installed.

    All write below `folder`, and Weights & Biases goes by its own variables where they say otherwise: WANDB_DIR,
    WANDB_NAME, and WANDB_PROJECT where `project` is None.

    Each is opened by itself rather than by `Accelerator.init_trackers`, where one that fails takes the others along.
    """
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise not_installed("machine.trackers", [tracker], tracker)
    told = {"dir": ("WANDB_DIR", str(folder)), "name": ("WANDB_NAME", name)}
    ours = {key: value for key, (variable, value) in told.items() if not os.environ.get(variable)}
    project = project or os.environ.get("WANDB_PROJECT") or PROJECT
    makers: dict[Tracker, Callable[[], GeneralTracker]] = {
        "wandb": partial(WandBTracker, project, config={"recipe": recipe}, **ours),
        "tensorboard": partial(TensorBoardTracker, "tensorboard", logging_dir=str(folder)),
    }
    return {tracker: partial(_AccelerateTracker, makers[tracker]) for tracker in trackers}


class BackgroundTracker:
    """A tracker at work in a thread of its own, from its opening to its closing: one that hangs holds nothing up."""

    def __init__(self, name: str, opener: Callable[[], OpenTracker], complain: Callable[[str], None]) -> None:
        """`complain` hears, once, why the tracker is left out; it may be called from the thread."""
        self._name, self._open, self._complain = name, opener, complain
        self._waiting: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(MAX_WAITING)
        self._is_out = False
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def show(self, numbers: dict[str, float], step: int) -> None:
        """Leave numbers for the tracker; it is not waited for."""
        self._hand_over((numbers, step))

    def close(self, patience_s: float = CLOSING_S) -> None:
        """Let it finish what it has; one that has not after `patience_s` is left behind."""
        self._hand_over(None)
        self._thread.join(0.0 if self._is_out else patience_s)
        if self._thread.is_alive():
            self._leave_out(f"it did not close within {patience_s:g} s")
        if self._is_out:
            end_services(self._name)

    def _work(self) -> None:
        try:
            tracker = self._open()
            while (shown := self._waiting.get()) is not None:
                tracker.show(*shown)
            tracker.close()
        except Exception as error:  # noqa: BLE001 - a tracker of any make may fail in any way; the run goes on
            self._leave_out(str(error))

    def _hand_over(self, shown: tuple[dict[str, float], int] | None) -> None:
        if self._is_out:
            return
        try:
            self._waiting.put_nowait(shown)
        except queue.Full:
            self._leave_out(f"it is {MAX_WAITING:,} lines behind")

    def _leave_out(self, why: str) -> None:
        if not self._is_out:
            self._is_out = True
            self._complain(why)


class _AccelerateTracker:
    def __init__(self, make: Callable[[], GeneralTracker]) -> None:
        self._tracker: Any = make()
        self._tracker.start()

    def show(self, numbers: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(numbers), step=step)

    def close(self) -> None:
        self._tracker.finish()
