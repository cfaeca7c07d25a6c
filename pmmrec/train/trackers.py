"""Mirror a run in Accelerate's trackers, without ever waiting for one."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import psutil

from pmmrec.errors import not_installed

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

Tracker = Literal["wandb", "tensorboard"]


PROJECT = "pmmrec"
MAX_WAITING = 10_000  # records that a tracker may be behind
CLOSING_S = 60.0  # for records that it has not sent at the end


class OpenTracker(Protocol):
    """An open tracker. Any method may raise or hang: the run goes on without it."""

    def show(self, numbers: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def end_services(tracker: str) -> None:
    """Kill the processes that a tracker started, so that this process does not wait for them when it exits."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if child.name().startswith(f"{tracker}-"):
                child.kill()


def tracker_openers(
    trackers: Sequence[Tracker], folder: Path, project: str | None, name: str, recipe: str
) -> dict[str, Callable[[], OpenTracker]]:
    """A function to open each tracker; MachineError if one is not installed.

    All write below `folder`. Variables of Weights & Biases win over it: WANDB_DIR, WANDB_NAME, and WANDB_PROJECT if
    `project` is None.

    Each is opened separately: in `Accelerator.init_trackers`, one that fails takes the others along.
    """
    if not trackers:
        return {}
    from accelerate.tracking import TensorBoardTracker, WandBTracker

    for tracker in trackers:
        if find_spec(tracker) is None:
            raise not_installed("machine.trackers", [tracker], tracker)
    defaults = {"dir": ("WANDB_DIR", str(folder)), "name": ("WANDB_NAME", name)}
    ours = {key: value for key, (variable, value) in defaults.items() if not os.environ.get(variable)}
    project = project or os.environ.get("WANDB_PROJECT") or PROJECT
    makers: dict[Tracker, Callable[[], GeneralTracker]] = {
        "wandb": partial(WandBTracker, project, config={"recipe": recipe}, **ours),
        "tensorboard": partial(TensorBoardTracker, "tensorboard", logging_dir=str(folder)),
    }
    return {tracker: partial(_AccelerateTracker, makers[tracker]) for tracker in trackers}


class BackgroundTracker:
    """A tracker that runs in a thread of its own from opening to closing, so that one that hangs delays nothing."""

    def __init__(self, name: str, opener: Callable[[], OpenTracker], complain: Callable[[str], None]) -> None:
        """`complain` is called once, perhaps from the thread, with the reason why the tracker is dropped."""
        self._name, self._open, self._complain = name, opener, complain
        self._waiting: queue.Queue[tuple[dict[str, float], int] | None] = queue.Queue(MAX_WAITING)
        self._is_dropped = False
        self._thread = threading.Thread(target=self._work, name="tracker", daemon=True)
        self._thread.start()

    def show(self, numbers: dict[str, float], step: int) -> None:
        """Pass numbers to the tracker without waiting."""
        self._enqueue((numbers, step))

    def close(self, timeout_s: float = CLOSING_S) -> None:
        """Let it send what it has; it is dropped if that takes longer than `timeout_s`."""
        self._enqueue(None)
        self._thread.join(0.0 if self._is_dropped else timeout_s)
        if self._thread.is_alive():
            self._drop(f"it did not close within {timeout_s:g} s")
        if self._is_dropped:
            end_services(self._name)

    def _work(self) -> None:
        try:
            tracker = self._open()
            while (shown := self._waiting.get()) is not None:
                tracker.show(*shown)
            tracker.close()
        except Exception as error:  # noqa: BLE001 - any tracker may fail in any way; the run goes on
            self._drop(str(error))

    def _enqueue(self, shown: tuple[dict[str, float], int] | None) -> None:
        if self._is_dropped:
            return
        try:
            self._waiting.put_nowait(shown)
        except queue.Full:
            self._drop(f"it is {MAX_WAITING:,} lines behind")

    def _drop(self, why: str) -> None:
        if not self._is_dropped:
            self._is_dropped = True
            self._complain(why)


class _AccelerateTracker:
    def __init__(self, make: Callable[[], GeneralTracker]) -> None:
        self._tracker: Any = make()
        self._tracker.start()

    def show(self, numbers: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(numbers), step=step)

    def close(self) -> None:
        self._tracker.finish()
