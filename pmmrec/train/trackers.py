"""Which trackers mirror a run, and how each is opened, shown numbers and closed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol

from pmmrec.errors import MachineError

Tracker = Literal["wandb", "tensorboard"]


class Board(Protocol):
    """An open tracker. Any of its methods may raise: RunLog then goes on without it."""

    def show(self, numbers: Mapping[str, float], step: int) -> None: ...
    def close(self) -> None: ...


def boards(
    trackers: Sequence[Tracker], folder: Path, project: str, name: str, recipe: str
) -> dict[str, Callable[[], Board]]:
    """What opens each tracker; all write below `folder`. MachineError where one is not installed."""
    makers: dict[Tracker, Callable[[Path, str, str, str], Board]] = {"wandb": _Wandb, "tensorboard": _TensorBoard}
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise MachineError(f"machine.trackers: {tracker} is not installed; pip install 'pmmrec[{tracker}]'")
    return {tracker: partial(makers[tracker], folder, project, name, recipe) for tracker in trackers}


class _Wandb:
    def __init__(self, folder: Path, project: str, name: str, recipe: str) -> None:
        import wandb

        self._run: Any = wandb.init(project=project, name=name, dir=str(folder), config={"recipe": recipe})

    def show(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers), step=step)

    def close(self) -> None:
        self._run.finish()


class _TensorBoard:
    def __init__(self, folder: Path, project: str, name: str, recipe: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(log_dir=str(folder / "tensorboard"))
        self._writer.add_text(f"{project}/{name}", f"```yaml\n{recipe}```")

    def show(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
