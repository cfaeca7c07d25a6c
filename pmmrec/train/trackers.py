"""Which of Accelerate's trackers mirror a run, and how each is opened, shown numbers and closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from pmmrec.errors import MachineError

Tracker = Literal["wandb", "tensorboard"]


class Board(Protocol):
    """An open tracker. Any of its methods may raise: RunLog then goes on without it."""

    def show(self, numbers: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def boards(
    trackers: Sequence[Tracker], folder: Path, project: str, name: str, recipe: str
) -> dict[str, Callable[[], Board]]:
    """What opens each tracker; all write below `folder`. MachineError where one is not installed.

    Each is opened by itself rather than by `Accelerator.init_trackers`, where one that fails takes the others along.
    """
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise MachineError(f"machine.trackers: {tracker} is not installed; pip install 'pmmrec[{tracker}]'")
    makers: dict[Tracker, Callable[[], GeneralTracker]] = {
        "wandb": partial(WandBTracker, project, name=name, dir=str(folder), config={"recipe": recipe}),
        "tensorboard": partial(TensorBoardTracker, "tensorboard", logging_dir=str(folder)),
    }
    return {tracker: partial(_Mirror, makers[tracker]) for tracker in trackers}


class _Mirror:
    def __init__(self, make: Callable[[], GeneralTracker]) -> None:
        self._tracker: Any = make()
        self._tracker.start()

    def show(self, numbers: Mapping[str, float], step: int) -> None:
        self._tracker.log(dict(numbers), step=step)

    def close(self) -> None:
        self._tracker.finish()
