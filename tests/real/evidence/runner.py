"""Execute a plan: run missing measurements and keep existing ones; a failure does not stop the others."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from pmmrec.data.domain import Domain
from pmmrec.data.splits import Split, split_of
from pmmrec.data.user_sample import UserSampleConfig
from pmmrec.errors import DataError, PMMRecError, RecipeError
from pmmrec.processes import folder_lock
from pmmrec.settings import read_yaml
from pmmrec.tuning.results import BEST_FILE
from pmmrec.tuning.space import read_space
from tests.real.evidence.cells import CellResult, Chosen, DifferenceResult, Results, Training, digest_of
from tests.real.evidence.identity import Identities
from tests.real.evidence.layout import Layout
from tests.real.evidence.measure import Targets
from tests.real.evidence.one_user import multiply_adds
from tests.real.evidence.plan import (
    MODEL,
    SCRATCH,
    BaselinesCell,
    EvidencePlan,
    FinetuneCell,
    domain_of,
    shown_reference,
)
from tests.real.evidence.recalled import recall
from tests.real.evidence.runs import RANKS_FILE, Processes, Run, Stamp, checkpoint_hash, training_of

Say = Callable[[str], None]
CHECKPOINT = "from.checkpoint"  # the change reported when a pretraining was repeated


@dataclass(frozen=True)
class Wanted:
    """Which cells to measure."""

    cells: tuple[str, ...] = ()  # names or globs, measured even if a result exists; empty: the missing ones
    stale: bool = False  # also those whose inputs have changed since
    fresh: bool = False  # repeat runs that are complete, too


@dataclass(frozen=True)
class _Side:
    """One side of a difference."""

    cell: CellResult
    system: str
    files: tuple[Path, ...]  # ranks of its seeds; empty unless all are here and belong to the cell

    @property
    def name(self) -> str:
        return shown_reference(self.cell.cell, self.system)


@dataclass
class Progress:
    """The progress of the runs."""

    num_runs: int = 0
    num_ended: int = 0
    failures: dict[str, str] = field(default_factory=dict)  # label of a run or id of a cell -> why


class Runner:
    """Measures the cells of a plan. Each cell is written when its last run has ended."""

    def __init__(
        self,
        plan: EvidencePlan,
        results: Results,
        layout: Layout,
        environment: Mapping[str, str],
        say: Say,
        show: Callable[[], object] | None = None,
    ) -> None:
        """`environment`: that of the processes of runs. `show`: called after each written cell."""
        self._show = show
        self._plan, self._results, self._layout, self._say = plan, results, layout, say
        self._environment = environment
        self._progress = Progress()

    def stale(self) -> dict[str, list[str]]:
        """The cells whose inputs have changed, with the paths of the changes."""
        identities = Identities(self._plan, self._layout.fingerprints())
        results = {cell_id: result for cell_id in self._plan.measured if (result := self._results.cell(cell_id))}
        found = {
            cell_id: identities.cell(cell_id).changes_since(result.identity) for cell_id, result in results.items()
        }
        for cell_id in self._of_other_checkpoints(results):
            found[cell_id].append(CHECKPOINT)
        return {cell_id: changes for cell_id, changes in found.items() if changes}

    def _of_other_checkpoints(self, results: Mapping[str, CellResult]) -> Iterator[str]:
        """Cells that started from another checkpoint of a repeated pretraining than the present one."""
        starts: dict[str, dict[str, str]] = {}  # pretraining -> cell -> hash of its checkpoint
        for cell_id, result in results.items():
            if result.checkpoint is not None:
                starts.setdefault(self._start(cell_id), {})[cell_id] = result.checkpoint
        for pretraining, checkpoints in starts.items():
            if len(set(checkpoints.values())) > 1:
                here = checkpoint_hash(self._layout.checkpoint(pretraining))
                yield from (cell_id for cell_id, checkpoint in checkpoints.items() if checkpoint != here)

    def _start(self, cell_id: str) -> str:
        start: str = getattr(self._plan.measured[cell_id], "start_from", SCRATCH)
        return start

    def measure(self, wanted: Wanted, jobs: int) -> dict[str, str]:
        """Measure the wanted cells with `jobs` parallel processes; returns the failures with reasons.

        RecipeError if a name matches no cell, or another process is measuring in the same folder; DataError if the
        data of a named cell is missing.
        """
        with folder_lock(self._layout.home, "another that measures, or a run that it left,") as lock:
            return self._measure(wanted, Processes(self._environment, lock), jobs)

    def _measure(self, wanted: Wanted, processes: Processes, jobs: int) -> dict[str, str]:
        cells = self._choose(wanted)
        self._bring(cells)
        identities = Identities(self._plan, self._layout.fingerprints())
        cells = [cell_id for cell_id in cells if cell_id not in self._progress.failures]
        runs = {cell_id: list(self._layout.runs(cell_id, identities).values()) for cell_id in cells}
        todo: list[Run] = []
        for cell_id, cell_runs in runs.items():
            own = [run for run in cell_runs if wanted.fresh or run.stamp() is None]
            before = self._layout.before(cell_id, identities) if own else []
            before = [run for run in before if run.stamp() is None and run.label not in {one.label for one in todo}]
            recalled = () if wanted.fresh else (self._plan, self._results, self._layout, identities)
            todo += [run for run in before if not recalled or not recall(run, *recalled)]
            todo += own
        self._progress.num_runs = len(todo)
        self._work(todo, runs, identities, processes, jobs)
        self._differ(None)
        return self._progress.failures

    def _choose(self, wanted: Wanted) -> list[str]:
        """The cells to measure, in the order of the plan."""
        measured = self._plan.measured
        if wanted.cells:
            chosen = [self._plan.resolve(name)[0] for name in self._plan.cells if _matches(name, wanted.cells)]
            idle = [word for word in wanted.cells if not any(_matches(name, (word,)) for name in self._plan.cells)]
            if idle:
                raise RecipeError(f"--cell {' '.join(idle)}: no cell of the plan has such a name")
            for cell_id in chosen:
                self._need_data(cell_id)
            return list(dict.fromkeys(chosen))
        # Changed data must be imported first: before, no cell of it is known to be stale.
        self._progress.failures |= self._import([name for name in self._plan.domains if self._layout.is_outdated(name)])
        stale = self.stale() if wanted.stale else {}
        chosen = [cell_id for cell_id in measured if cell_id in stale or self._results.cell(cell_id) is None]
        here = [cell_id for cell_id in chosen if self._has_data(cell_id)]
        if len(here) < len(chosen):
            self._say(f"no data for {len(chosen) - len(here)} of {len(chosen)} cells to measure; they stay as they are")
        return here

    def _has_data(self, cell_id: str) -> bool:
        layout, needed = self._layout, self._plan.domains_of(cell_id)
        return all(layout.is_imported(name) or layout.has_data(name) for name in needed)

    def _need_data(self, cell_id: str) -> None:
        if not self._has_data(cell_id):
            needed = ", ".join(self._plan.domains_of(cell_id))
            raise DataError(f"{cell_id}: needs the data of {needed}, which is not all here; name its folder")

    def _bring(self, cells: Sequence[str]) -> None:
        """Import the domains of cells; the cells of a domain that fails to import fail."""
        broken = self._import(dict.fromkeys(name for cell_id in cells for name in self._plan.domains_of(cell_id)))
        for cell_id in cells:
            reasons = [broken[name] for name in self._plan.domains_of(cell_id) if name in broken]
            if reasons:
                self._progress.failures[cell_id] = reasons[0]

    def _import(self, names: Iterable[str]) -> dict[str, str]:
        """Import domains that are not imported as planned; returns the failures with reasons."""
        broken: dict[str, str] = {}
        for name in names:
            with _noted_in(broken, name):
                if self._layout.bring(name):
                    self._say(f"imported {name}")
        return broken

    def _work(
        self,
        todo: list[Run],
        runs: Mapping[str, Sequence[Run]],
        identities: Identities,
        processes: Processes,
        jobs: int,
    ) -> None:
        """Start a run when a slot is free and its checkpoint exists; write a cell when its last run has ended."""
        waiting, active, open_cells = list(todo), dict[Future[Stamp], Run](), dict(runs)
        with ThreadPoolExecutor(max_workers=jobs) as threads:
            try:
                while True:
                    pending = {run.label for run in (*waiting, *active.values())}
                    for run in self._ready(waiting, pending)[: jobs - len(active)]:
                        waiting.remove(run)
                        self._say(f"started {run.label}")
                        active[threads.submit(processes.work, run)] = run
                    for cell_id in [c for c, needed in open_cells.items() if not pending & {r.label for r in needed}]:
                        self._write(cell_id, open_cells.pop(cell_id), identities)
                    if not active and not waiting:
                        return
                    for future in wait(active, return_when=FIRST_COMPLETED).done:
                        self._ended(active.pop(future), future, waiting)
            finally:
                processes.end()

    def _ready(self, waiting: Sequence[Run], pending: set[str]) -> list[Run]:
        return [run for run in waiting if not pending & {*run.needs}]

    def _ended(self, run: Run, future: Future[Stamp], waiting: list[Run]) -> None:
        """Report how a run ended; runs that depend on a failed one fail too."""
        progress = self._progress
        progress.num_ended += 1
        with _noted_in(progress.failures, run.label):
            stamp = future.result()
            outcome = f"{stamp.wall_s / 60:.1f} min, CPU {stamp.cpu_s / 60:.1f} min"
        if run.label in progress.failures:
            outcome = f"FAILED: {progress.failures[run.label]}"
            self._give_up(run.label, waiting)
        left = progress.num_runs - progress.num_ended
        self._say(f"[{progress.num_ended}/{progress.num_runs}] {run.label}: {outcome}; {left} left")

    def _give_up(self, failed: str, waiting: list[Run]) -> None:
        """Runs that need a failed one fail too, and so do those that need them."""
        for other in [other for other in waiting if failed in other.needs]:
            waiting.remove(other)
            self._progress.num_ended += 1
            self._progress.failures[other.label] = f"{other.label}: needs {failed}, which failed"
            self._give_up(other.label, waiting)

    def _write(self, cell_id: str, runs: Sequence[Run], identities: Identities) -> None:
        if any(run.label in self._progress.failures for run in runs):
            return
        with _noted_in(self._progress.failures, cell_id):
            path = self._results.write(self._result(cell_id, identities))
            self._say(f"wrote {path}")
        if cell_id in self._progress.failures:
            return
        self._differ(cell_id)
        if self._show is not None:
            with _noted_in(self._progress.failures, "page"):
                self._show()

    def _result(self, cell_id: str, identities: Identities) -> CellResult:
        cell, identity = self._plan.measured[cell_id], identities.cell(cell_id)
        split = split_of(self._plan.split, Domain.open(self._layout.domain(domain_of(cell_id))))
        targets, runs = Targets(split, self._plan.targets), self._layout.runs(cell_id, identities)
        chosen = self._chosen(cell_id, identities)
        names = cell.names if isinstance(cell, BaselinesCell) else {}
        if isinstance(cell, BaselinesCell):
            chosen = self._write_baselines(cell_id, cell, targets, split)
        stamps = {seed: stamp for seed, run in runs.items() if (stamp := run.stamp()) is not None}
        seeds = tuple(seed for seed in runs if seed is not None)
        checkpoints = {stamp.checkpoint for stamp in stamps.values()}
        adds = self._multiply_adds(cell_id, identities) if seeds else None
        ranks = self._rank_files(cell_id, list(names), identities)
        return CellResult(
            cell=cell_id,
            kind=cell.kind,
            hash=identity.hash,
            num_items=split.domain.num_items,
            tuning=self._plan.tuning_of(cell_id),
            seeds=cell.seeds or () if isinstance(cell, BaselinesCell) else seeds,
            systems={system: targets.figures(targets.ranks(files)) for system, files in ranks.items()},
            trainings=tuple(training_of(runs[seed], seed, stamps[seed], adds) for seed in seeds),
            chosen=chosen,
            pretraining=self._pretraining_of(cell_id, identities),
            hardware=stamps[None].hardware if None in stamps else None,
            checkpoint=checkpoints.pop() if len(checkpoints) == 1 else None,
            identity=identity.tree,
        )

    def _write_baselines(self, cell_id: str, cell: BaselinesCell, targets: Targets, split: Split) -> Chosen | None:
        """Rank with the baselines of a cell; the settings that were chosen, where they are tuned."""
        shutil.rmtree(self._layout.cell(cell_id), ignore_errors=True)
        if cell.kind == "tuned_baselines":
            return targets.write_tuned_baselines(self._layout.cell(cell_id))
        for seed, folder in self._layout.baselines(cell_id, cell).items():
            learned = split
            if seed is not None and cell.users is not None:
                learned = split_of(split.config, split.domain, UserSampleConfig(sample=cell.users, seed=seed))
            targets.write_baselines(folder, learned=learned)
        return None

    def _multiply_adds(self, cell_id: str, identities: Identities) -> int | None:
        """The multiply-adds of one user's forward in the model of a cell; None where a checkpoint decides it."""
        cell = self._plan.measured[cell_id]
        if not isinstance(cell, FinetuneCell) or cell.start_from != SCRATCH or cell.weights:
            return None
        recipe, overrides = cell.recipe, list(cell.overrides)
        if cell.search is not None:
            recipe, overrides = str(self._layout.search(cell_id, identities).folder / BEST_FILE), []
        return multiply_adds(recipe, overrides, self._layout.domain(domain_of(cell_id)))

    def _chosen(self, cell_id: str, identities: Identities) -> Chosen | None:
        """The settings that the search of a cell found; None where there is none."""
        planned = self._plan.search_of(cell_id)
        if planned is None:
            return None
        run = self._layout.search(cell_id, identities)
        stamp, recipe = run.stamp(), read_yaml(run.folder / BEST_FILE)
        values = read_space(planned.file).values_in(recipe)
        return Chosen(values=values, trials=planned.trials, cpu_s=0.0 if stamp is None else stamp.cpu_s)

    def _pretraining_of(self, cell_id: str, identities: Identities) -> Training | None:
        start = self._start(cell_id)
        if start == SCRATCH:
            return None
        run = self._layout.pretraining(start, identities)
        stamp = run.stamp()
        return None if stamp is None else training_of(run, self._plan.pretrainings[start].seed, stamp)

    def _rank_files(self, cell_id: str, systems: Sequence[str], identities: Identities) -> dict[str, list[Path]]:
        runs = self._layout.runs(cell_id, identities)
        cell = self._plan.measured[cell_id]
        if not isinstance(cell, BaselinesCell):
            return {MODEL: [run.ranks for run in runs.values()]}
        folders = self._layout.baselines(cell_id, cell).values()
        return {system: [folder / system / RANKS_FILE for folder in folders] for system in systems}

    def _differ(self, written: str | None) -> None:
        """Write the differences of the cell just written; None: those that are missing or outdated.

        A difference needs the ranks of both sides, which are not among the results: cells measured on another machine
        are skipped.
        """
        identities = Identities(self._plan, self._layout.fingerprints())
        for planned in self._plan.compared:
            sides = [self._side(reference, identities) for reference in (planned.a, planned.b)]
            a, b = sides
            if a is None or b is None or {a.cell.cell, b.cell.cell} & self._progress.failures.keys():
                continue
            kept = self._results.difference(a.name, b.name)
            is_current = kept is not None and kept.is_of(a.cell, b.cell)
            if is_current if written is None else written not in (a.cell.cell, b.cell.cell):
                continue
            if a.files and b.files:
                with _noted_in(self._progress.failures, f"{a.name} - {b.name}"):
                    self._write_difference(a, b)
            elif written is None:
                self._say(f"not compared: {a.name} - {b.name}; measure both here first")

    def _side(self, reference: str, identities: Identities) -> _Side | None:
        """One side of a difference; None if it was not measured."""
        cell_id, system = self._plan.resolve(reference)
        cell = self._results.cell(cell_id)
        if cell is None:
            return None
        files = self._rank_files(cell_id, [system], identities)[system]
        is_here = all(file.is_file() for file in files) and not identities.cell(cell_id).changes_since(cell.identity)
        return _Side(cell, system, tuple(files) if is_here else ())

    def _write_difference(self, a: _Side, b: _Side) -> None:
        split = split_of(self._plan.split, Domain.open(self._layout.domain(domain_of(a.cell.cell))))
        targets = Targets(split, self._plan.targets)
        ranks = [targets.ranks(side.files) for side in (a, b)]
        found = tuple(targets.digest(rank_MQ) for rank_MQ in ranks)
        figures = (digest_of(a.cell.systems[a.system]), digest_of(b.cell.systems[b.system]))
        if found != figures:
            self._say(f"not compared: {a.name} - {b.name}; ranks here are of other figures, measure both here first")
            return
        difference = DifferenceResult(
            a=a.name,
            b=b.name,
            hashes=(a.cell.hash, b.cell.hash),
            figures=figures,
            seeds=max(a.cell.seeds, b.cell.seeds, key=len),
            strata=targets.difference(*ranks),
            p_values=targets.p_values(self._plan.tested, *ranks),
        )
        self._say(f"wrote {self._results.write(difference)}")


@contextmanager
def _noted_in(failures: dict[str, str], what: str) -> Iterator[None]:
    """Record any error in the block as the failure of `what` and continue."""
    try:
        yield
    except PMMRecError as error:
        failures[what] = str(error)
    except Exception as error:  # noqa: BLE001 - one failure must not end hours of other measurements
        place = traceback.extract_tb(error.__traceback__)[-1]
        failures[what] = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"


def _matches(name: str, words: Sequence[str]) -> bool:
    return any(fnmatchcase(name, word) for word in words)
