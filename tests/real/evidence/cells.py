"""Store measurements: one small file for each cell and for each difference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pmmrec.atomic import whole_file
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.significance import Interval
from pmmrec.settings import Config, validate
from tests.real.evidence.plan import MODEL, EvidencePlan, shown_reference

DIFFERENCES = "differences"  # their folder beside those of the cells
DECIMALS = 6
EXACT = ("identity", "values")  # settings, which are no measurements
_R = TypeVar("_R", bound="Config")


class Hardware(Config):
    """The machine of a training."""

    cpu: str
    cores: int
    threads: int
    device: str  # "cpu", or the name of a GPU
    torch: str

    @property
    def shown(self) -> str:
        where = f"{self.cpu}, {self.threads} of {self.cores} cores"
        return f"{where if self.device == 'cpu' else f'{self.device} ({where})'}, torch {self.torch}"


class Figures(Config):
    """The metrics of a system on the test targets of one stratum, in 0..1."""

    num_users: int
    intervals: dict[str, Interval] = {}  # by metric, over users and seeds; empty for an empty stratum
    by_seed: dict[str, tuple[float, ...]] = {}  # means over users


class Point(Config):
    """Validation after one epoch, in 0..1."""

    epoch: int
    ndcg: float
    hr: float


class Cost(Config):
    """The cost of a training besides CPU time, without validation."""

    trainable_parameters: int
    total_parameters: int
    peak_memory_bytes: int | None = None  # of the GPU; without one, of the process since its start
    seconds_per_epoch: float | None = None
    multiply_adds: int | None = None  # of one user's forward; None: not counted

    @property
    def trainable_share(self) -> float:
        """Share of the parameters that are trained, in 0..1."""
        return self.trainable_parameters / self.total_parameters


class Training(Config):
    """One training with one seed."""

    seed: int
    best_epoch: int
    num_epochs: int
    cpu_s: float  # of the whole process, including start, caches and ranking
    wall_s: float
    training_s: float  # wall time of the steps alone
    hardware: Hardware
    validation: tuple[Point, ...]
    cost: Cost | None = None  # None: measured before runs recorded it


class Chosen(Config):
    """What a search found before the seeds of a cell were run, or what suits the validation targets best."""

    values: dict[str, Any]  # by the path of a setting
    trials: int
    cpu_s: float  # of all trials


class CellResult(Config):
    """The result of one cell: metrics by system (one, or the baselines) and stratum."""

    schema_version: Literal[1] = 1
    cell: str
    kind: Literal["baselines", "tuned_baselines", "finetune", "zero_shot"]
    hash: str  # of `identity`
    num_items: int
    tuning: str = ""
    seeds: tuple[int, ...] = ()
    systems: dict[str, dict[str, Figures]]
    trainings: tuple[Training, ...] = ()
    chosen: Chosen | None = None  # None: there was no search
    pretraining: Training | None = None  # the pretraining it started from, if the plan includes it
    hardware: Hardware | None = None  # of an evaluation; trainings have their own
    checkpoint: str | None = None  # sha256 of the index it started from; None also in older results
    identity: dict[str, Any]


class DifferenceResult(Config):
    """The difference of system a minus system b, paired over users, by stratum."""

    schema_version: Literal[1] = 1
    a: str
    b: str
    hashes: tuple[str, str]  # of both cells
    figures: tuple[str, str] = ("", "")  # digests of the metrics of both systems
    seeds: tuple[int, ...] = ()
    strata: dict[str, Figures]
    p_values: dict[str, dict[str, float]] = {}  # metric -> test -> p, not adjusted, of all targets

    def is_of(self, a: CellResult | None, b: CellResult | None) -> bool:
        """Whether it was computed from these cells and their metrics."""
        names = (self.a.partition("@")[2] or MODEL, self.b.partition("@")[2] or MODEL)
        sides = zip((a, b), names, self.hashes, self.figures, strict=True)
        return all(
            cell is not None and (cell.hash, digest_of(cell.systems[system])) == (hash_, figures)
            for cell, system, hash_, figures in sides
        )


def digest_of(strata: Mapping[str, Figures]) -> str:
    """sha256 of the stored metrics of a system by seed, without intervals, which depend on more than ranks."""
    tree = {name: [figures.num_users, _rounded(figures.by_seed)] for name, figures in strata.items()}
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


class Results:
    """The folder of results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def cell_path(self, cell_id: str) -> Path:
        return self.folder / f"{cell_id}.json"

    def difference_path(self, a: str, b: str) -> Path:
        """`a` and `b`: resolved references, `CELL` or `CELL@BASELINE`."""
        return self.folder / DIFFERENCES / f"{a.replace('/', '.')}--{b.replace('/', '.')}.json"

    def cell(self, cell_id: str) -> CellResult | None:
        """The result of a cell; None if it was not measured. DataError for a file that is not a result."""
        return _read(CellResult, self.cell_path(cell_id))

    def difference(self, a: str, b: str) -> DifferenceResult | None:
        return _read(DifferenceResult, self.difference_path(a, b))

    def write(self, result: CellResult | DifferenceResult) -> Path:
        """Write a result, whole or not at all."""
        if isinstance(result, CellResult):
            path = self.cell_path(result.cell)
        else:
            path = self.difference_path(result.a, result.b)
        text = json.dumps(_rounded(result.model_dump(mode="json")), indent=1, ensure_ascii=False)
        with whole_file(path) as draft:
            draft.write_text(text + "\n", encoding="utf-8")
        return path

    def unplanned(self, plan: EvidencePlan) -> list[Path]:
        """Result files that the plan does not contain."""
        planned = {self.cell_path(cell_id) for cell_id in plan.measured}
        for difference in plan.compared:
            a, b = (shown_reference(*plan.resolve(side)) for side in (difference.a, difference.b))
            planned.add(self.difference_path(a, b))
        return [path for path in sorted(self.folder.rglob("*.json")) if path not in planned]


def _read(result_class: type[_R], path: Path) -> _R | None:
    if not path.is_file():
        return None
    try:
        return validate(result_class, json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError, RecursionError, RecipeError) as error:
        raise DataError(f"{path}: not a readable result; remove it and measure again: {error}") from error


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DECIMALS)
    if isinstance(value, dict):
        return {key: entry if key in EXACT else _rounded(entry) for key, entry in value.items()}
    return [_rounded(entry) for entry in value] if isinstance(value, list | tuple) else value
