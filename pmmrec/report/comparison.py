"""Compare systems with one another and with baselines: a table per domain, and a sentence per pair."""
# M seeds of one system, Q users of a domain, V targets (one or several per user).

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.metrics import Measured, query_metrics
from pmmrec.evaluation.outcome import METRICS_FILE, DomainOutcome, Outcome, StratumOutcome, read_outcome
from pmmrec.evaluation.significance import Interval, mean_interval, over_users
from pmmrec.homes import expanded
from pmmrec.report.outcomes import measure_title
from pmmrec.report.paired import Figures, PairedDifference, adjusted, paired, table_of_tests
from pmmrec.report.ranks import RankedTargets, ranks_file, read_ranked, same_targets
from pmmrec.report.tables import ResultRow, cutoffs_of, results, shown_names
from pmmrec.tables import PlainTable

CHANCE = "random"  # tested only on request: each test raises the adjusted p-values, and this one says little
SAME_MEAN = 1e-9  # tolerance between means of the same values, summed in another order


@dataclass(frozen=True)
class ComparedSystem:
    """The runs of one system, one per training seed."""

    name: str
    folders: tuple[Path, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def domains(self) -> dict[str, DomainOutcome]:
        """The domains that all of its runs were measured on, by name."""
        shared = set.intersection(*({found.domain for found in outcome.domains} for outcome in self.outcomes))
        return {found.domain: found for found in self.outcomes[0].domains if found.domain in shared}

    @property
    def best_epoch(self) -> float | None:
        """Epochs to the best validation, averaged over seeds; None if nothing was trained."""
        epochs = [outcome.best_epoch for outcome in self.outcomes if outcome.best_epoch is not None]
        if not epochs or len(epochs) < len(self.outcomes):
            return None
        return epochs[0] if len(epochs) == 1 else sum(epochs) / len(epochs)


@dataclass(frozen=True)
class ComparedDomain:
    """The systems and baselines that were measured on one domain."""

    about: DomainOutcome
    scenario: str
    names: tuple[str, ...]  # of the metrics that are compared
    baselines: tuple[ResultRow, ...]
    systems: tuple[ResultRow, ...]

    def table(self) -> PlainTable:
        """A table of baselines and systems, in %."""
        title = measure_title(self.about, self.scenario)
        if self.about.held_out is not None:
            title += f"; only the {self.about.held_out.num_targets:,} held-out targets are compared"
        return results([*self.baselines, *self.systems], self.names, title=title)

    def record(self) -> dict[str, Any]:
        """The same figures for JSON output."""
        about, fair = self.about, _fair(self.about)
        return {
            "domain": about.domain,
            "scenario": self.scenario,
            "num_users": about.num_users,
            "num_items": about.num_items,
            "num_targets": fair.num_targets or about.num_users,
            "is_held_out_only": about.held_out is not None,
            "seen_target": about.seen_target,
            "baselines": [_row_record(row) for row in self.baselines],
            "systems": [_row_record(row) for row in self.systems],
        }


@dataclass(frozen=True)
class Compared:
    """A comparison: tables by domain, paired differences, notes and warnings."""

    domains: tuple[ComparedDomain, ...]
    differences: tuple[PairedDifference, ...]
    notes: tuple[str, ...]  # what could not be tested
    warnings: tuple[str, ...]  # what may make the comparison unfair

    @property
    def tables(self) -> tuple[PlainTable, ...]:
        """One table per domain."""
        return tuple(domain.table() for domain in self.domains)

    @property
    def tests(self) -> tuple[PlainTable, ...]:
        """A table of every pair by all tests; none where there is no pair."""
        return (table_of_tests(self.differences),) if self.differences else ()

    def record(self) -> dict[str, Any]:
        """The whole comparison for JSON output; differences are first minus second."""
        return {
            "domains": [domain.record() for domain in self.domains],
            "differences": [{**vars(one), "is_shown": one.is_shown} for one in self.differences],
            "notes": self.notes,
            "warnings": self.warnings,
        }

    def lines(self) -> list[str]:
        """Sentences about the pairs, by domain, then the method, notes and warnings."""
        domains = dict.fromkeys(difference.domain for difference in self.differences)
        lines = []
        for domain in domains:
            lines += [f"{domain}:"] if len(domains) > 1 else []
            lines += [difference.words() for difference in self.differences if difference.domain == domain]
        if self.differences:
            asked = len(self.differences)
            lines.append(
                f"p: paired sign-flip test over users, two-sided, adjusted by Holm for {asked} test(s), in the table "
                "beside a paired t-test and Wilcoxon's signed-rank test; intervals: 95 %, paired bootstrap over users, "
                "and over seeds if a system has several"
            )
        return [*lines, *(f"note: {note}" for note in self.notes), *(f"warning: {text}" for text in self.warnings)]


def read_systems(words: Sequence[str]) -> list[ComparedSystem]:
    """Read systems given as `RUN` or `NAME=RUN,RUN,...` (seeds of one system).

    Systems with the same name are renamed to their folders. Raises RecipeError for invalid arguments, DataError for
    folders without metrics and for systems that were not measured on the same domain by the same rules.
    """
    systems = [_system(word) for word in words]
    names = [system.name for system in systems]
    systems = [
        system
        if names.count(system.name) == 1
        else ComparedSystem(", ".join(map(str, system.folders)), system.folders, system.outcomes)
        for system in systems
    ]
    folders = [folder.resolve() for system in systems for folder in system.folders]
    for folder in folders:
        if folders.count(folder) > 1:
            raise RecipeError(f"{folder}: named twice; a run counts once")
    _refuse_other_measures([pair for system in systems for pair in zip(system.folders, system.outcomes, strict=True)])
    return systems


def compare(systems: Sequence[ComparedSystem], against: str | None = None, cutoff: int | None = None) -> Compared:
    """Compare every pair of systems, and every system with the baselines, on each domain they were measured on.

    `against` restricts the tests to one system or baseline; `cutoff` is that of the metrics, 10 or the smallest if none
    is given. Raises RecipeError if one of them is unknown, DataError if ranks are of other users or targets.
    """
    _refuse_unknown(systems, against)
    _refuse_unmeasured(systems, cutoff)
    domains, raw, notes = [], list[PairedDifference](), list[str]()
    for name, about in _all_domains(systems).items():
        here = [system for system in systems if name in system.domains]
        names = shown_names(_fair(about).metrics, cutoff)
        figures, baselines = _figures(here, name, names, notes)
        rows = [_row(system, name, figures.get(system.name)) for system in here]
        baseline_rows = [ResultRow(baseline, metrics) for baseline, metrics in _fair(about).baselines.items()]
        scenario = systems[0].outcomes[0].scenario
        domains.append(ComparedDomain(about, scenario, names, tuple(baseline_rows), tuple(rows)))
        raw += _differences(figures, baselines, name, against)
    return Compared(tuple(domains), tuple(adjusted(raw)), tuple(notes), tuple(_cut_off(systems)))


def _refuse_unknown(systems: Sequence[ComparedSystem], against: str | None) -> None:
    """RecipeError if `against` is unknown, or is the only system."""
    if against is None:
        return
    known = [system.name for system in systems]
    baselines = dict.fromkeys(name for about in _all_domains(systems).values() for name in _fair(about).baselines)
    if against not in (*known, *baselines):
        raise RecipeError(
            f"--against {against!r}: is not a system or baseline here; there are: {', '.join([*known, *baselines])}"
        )
    if known == [against]:
        raise RecipeError(f"--against {against}: has no effect on one system alone; name another to compare it with")


def _refuse_unmeasured(systems: Sequence[ComparedSystem], cutoff: int | None) -> None:
    """RecipeError if a domain was not measured at this cut-off."""
    for name, about in _all_domains(systems).items():
        measured = cutoffs_of(_fair(about).metrics)
        if cutoff is not None and cutoff not in measured:
            raise RecipeError(
                f"--at {cutoff}: {name} was measured at {', '.join(map(str, measured))}; choose one of these, or train "
                "with others (validation.cutoffs)"
            )


def _cut_off(systems: Sequence[ComparedSystem]) -> Iterator[str]:
    """A warning for each run whose best epoch was its last."""
    for system in systems:
        for folder, outcome in zip(system.folders, system.outcomes, strict=True):
            if outcome.best_epoch and outcome.best_epoch == outcome.num_epochs:
                name = system.name if len(system.folders) == 1 else f"{system.name} ({folder})"
                yield (
                    f"{name} was at its best in its last epoch ({outcome.best_epoch}); with more epochs (train.epochs) "
                    "it may get better, and the comparison may change"
                )


def _system(word: str) -> ComparedSystem:
    name, equals, listed = word.partition("=")
    whole = expanded(Path(word))
    if word and ((not equals and "," not in word) or whole.exists()):
        outcome = read_outcome(whole)
        return ComparedSystem(outcome.name, (whole,), (outcome,))
    folders = tuple(expanded(Path(folder)) for folder in listed.split(","))
    if not name or not all(listed.split(",")):
        raise RecipeError(f"argument {word!r}: name a run folder, or seeds of one system as NAME=RUN,RUN")
    return ComparedSystem(name, folders, tuple(read_outcome(folder) for folder in folders))


def _refuse_other_measures(runs: Sequence[tuple[Path, Outcome]]) -> None:
    """DataError unless every run shares a domain with the first one and was measured by the same rules."""
    first_folder, first = runs[0]
    for folder, outcome in runs:
        if not outcome.domains:
            raise DataError(
                f"{folder}: its test targets were not ranked (rank_test: false), or there are none (data.holdout), so "
                "it has no test metrics"
            )
    for folder, outcome in runs[1:]:
        ours, theirs = _measure(first), _measure(outcome)
        shared = ours.keys() & theirs.keys()
        rules = (outcome.seen, outcome.scenario, outcome.split) == (first.seen, first.scenario, first.split)
        if not shared or not rules or any(ours[name] != theirs[name] for name in shared):
            raise DataError(
                f"{folder}: measured on {_measured_on(outcome)}, {first_folder} on {_measured_on(first)}; "
                "only figures on the same users and rules compare"
            )


def _measure(outcome: Outcome) -> dict[str, str]:
    return {found.domain: found.fingerprint for found in outcome.domains}


def _told(split: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name}={value}" for name, value in split.items() if name != "type")
    return f"{split.get('type')} ({settings})" if settings else f"{split.get('type')}"


def _measured_on(outcome: Outcome) -> str:
    domains = ", ".join(f"{found.domain} ({found.fingerprint[:8]})" for found in outcome.domains)
    return f"{domains}, {outcome.scenario} targets, seen: {outcome.seen}, split: {_told(outcome.split)}"


def _fair(found: DomainOutcome) -> DomainOutcome | StratumOutcome:
    """The metrics on targets that no system and no baseline has learned from."""
    return found if found.held_out is None else found.held_out


def _all_domains(systems: Sequence[ComparedSystem]) -> dict[str, DomainOutcome]:
    domains: dict[str, DomainOutcome] = {}
    for system in systems:
        for name, found in system.domains.items():
            domains.setdefault(name, found)
    return domains


def _figures(
    systems: Sequence[ComparedSystem], domain: str, names: Sequence[str], notes: list[str]
) -> tuple[dict[str, Figures], dict[str, Figures]]:
    """Values per user, by metric, of each system and each baseline whose ranks were kept; `names`: the metrics.

    Adds a note for systems and baselines without ranks to `notes`.
    """
    found: dict[str, Figures] = {}
    baselines: dict[str, Figures] = {}
    first: tuple[Path, RankedTargets] | None = None
    for system in systems:
        paths = [ranks_file(folder, out, domain) for folder, out in zip(system.folders, system.outcomes, strict=True)]
        missing = [path for path in paths if not path.is_file()]
        if missing:
            notes.append(f"{system.name} is in no test: {missing[0]} is missing; measure it again to keep its ranks")
            continue
        seeds = []
        for path, outcome in zip(paths, system.outcomes, strict=True):
            ranked, about = read_ranked(path), _found_on(outcome, domain)
            first = first or (path, ranked)
            seeds.append(same_targets(ranked, path, first[1], first[0]))
            _refuse_other_figures(path, seeds[-1], ranked.query_V, about, _fair(about).metrics)
            for name, rank_V in ranked.baselines.items():
                _refuse_other_figures(path, rank_V, ranked.query_V, about, _fair(about).baselines.get(name, {}))
                if name not in baselines:
                    baselines[name] = _by_user(rank_V[None], ranked, names)
        found[system.name] = _by_user(np.stack(seeds), ranked, names)
    if first is not None and not baselines and any(_fair(system.domains[domain]).baselines for system in systems):
        notes.append(f"no baseline is in a test: {first[0]} does not hold their ranks; measure it again to keep them")
    return found, baselines


def _by_user(rank_MV: NDArray[np.int64], ranked: RankedTargets, names: Sequence[str]) -> Figures:
    metrics_MQ = _metrics(rank_MV, ranked.query_V, names)
    return {name: over_users(values_MQ, ranked.user_of_query) for name, values_MQ in metrics_MQ.items()}


def _metrics(rank_MV: NDArray[np.int64], query_V: NDArray[np.int64], names: Iterable[str]) -> dict[str, Tensor]:
    """The named metrics of each query."""
    return query_metrics(torch.from_numpy(rank_MV), torch.from_numpy(query_V), Measured((), tuple(names)))


def _found_on(outcome: Outcome, domain: str) -> DomainOutcome:
    return next(found for found in outcome.domains if found.domain == domain)


def _refuse_other_figures(
    path: Path,
    rank_V: NDArray[np.int64],
    query_V: NDArray[np.int64],
    found: DomainOutcome,
    metrics: Mapping[str, Interval],
) -> None:
    """DataError if `metrics` were not computed from these ranks: the table would contradict the tests."""
    if rank_V.max() > found.num_items:
        raise DataError(
            f"{path}: a rank is {rank_V.max()}, but {found.domain} has {found.num_items} items; measure the run again"
        )
    for name, values_Q in _metrics(rank_V, query_V, filter(metrics.__contains__, shown_names(metrics))).items():
        if abs(float(values_Q.mean()) - metrics[name].mean) > SAME_MEAN:
            raise DataError(
                f"{path}: its mean {name} is {values_Q.mean():.2%}, but {path.parent / METRICS_FILE} says "
                f"{metrics[name].mean:.2%}: the two are of different measurements; measure the run again"
            )


def _row(system: ComparedSystem, domain: str, figures: Figures | None) -> ResultRow:
    """The table row of a system: means over seeds; several seeds without ranks have no interval."""
    metrics: Mapping[str, Interval | float] = _fair(system.domains[domain]).metrics
    num_seeds = len(system.folders)
    if figures is not None and (num_seeds > 1 or not figures.keys() <= metrics.keys()):
        metrics = {name: mean_interval(values_MQ) for name, values_MQ in figures.items()}
    elif num_seeds > 1:
        each = [_fair(_found_on(outcome, domain)).metrics for outcome in system.outcomes]
        shared = [name for name in each[0] if all(name in one for one in each)]
        metrics = {name: float(np.mean([one[name].mean for one in each])) for name in shared}
    return ResultRow(system.name, metrics, best_epoch=system.best_epoch, num_seeds=num_seeds)


def _row_record(row: ResultRow) -> dict[str, Any]:
    metrics = {
        name: {"mean": at, "low": None, "high": None, "level": None} if isinstance(at, float) else at
        for name, at in row.metrics.items()
    }
    return {"system": row.system, "num_seeds": row.num_seeds, "best_epoch": row.best_epoch, "metrics": metrics}


def _differences(
    figures: Mapping[str, Figures], baselines: Mapping[str, Figures], domain: str, against: str | None
) -> list[PairedDifference]:
    """Every pair on every metric, with unadjusted p-values."""
    pairs = list(itertools.combinations(figures.items(), 2))
    pairs += itertools.product(figures.items(), [one for one in baselines.items() if one[0] != CHANCE])
    if against is not None:
        other = figures if against in figures else baselines
        pairs = [(one, (against, other[against])) for one in figures.items() if one[0] != against and against in other]
    return [
        paired(first, second, metric, domain, a[metric], b[metric]) for (first, a), (second, b) in pairs for metric in a
    ]
