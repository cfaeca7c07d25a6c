"""Lay out the test metrics of runs as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pmmrec.evaluation.blend import BlendConfig
from pmmrec.evaluation.outcome import DomainOutcome, Outcome
from pmmrec.evaluation.significance import Interval
from pmmrec.report.tables import Percent, ResultRow, results, shown_names
from pmmrec.settings import validate
from pmmrec.tables import Cell, PlainTable, Sentence


def result_rows(outcomes: Sequence[Outcome]) -> list[tuple[DomainOutcome, list[ResultRow]]]:
    """For each domain, the rows of its baselines and of every outcome."""
    by_domain: dict[str, tuple[DomainOutcome, list[ResultRow]]] = {}
    for outcome in outcomes:
        for found in outcome.domains:
            if found.domain not in by_domain:
                baselines = [ResultRow(name, metrics) for name, metrics in found.baselines.items()]
                by_domain[found.domain] = (found, baselines)
            row = ResultRow(outcome.name, found.metrics, best_epoch=outcome.best_epoch)
            by_domain[found.domain][1].append(row)
    return list(by_domain.values())


def outcome_tables(outcomes: Sequence[Outcome]) -> list[PlainTable]:
    """One table per domain."""
    return [
        results(rows, shown_names(domain.metrics), title=measure_title(domain, outcomes[0].scenario))
        for domain, rows in result_rows(outcomes)
    ]


def held_out_tables(outcome: Outcome) -> list[PlainTable]:
    """Tables of the targets outside the training part, for scenarios that also have targets inside it."""
    tables = []
    for found in outcome.domains:
        if found.held_out is not None:
            num_targets = found.held_out.num_targets
            title = f"{found.domain}: the {num_targets:,} {outcome.scenario} held-out targets, in %"
            rows = [ResultRow(name, metrics) for name, metrics in found.held_out.baselines.items()]
            rows.append(ResultRow(outcome.name, found.held_out.metrics))
            tables.append(results(rows, shown_names(found.metrics), title=title))
    return tables


def popularity_tables(outcomes: Sequence[Outcome]) -> list[PlainTable]:
    """For each domain, NDCG@10 by how often the target occurs in training: baselines, then systems."""
    by_domain: dict[str, dict[str, DomainOutcome]] = {}
    for outcome in outcomes:
        for found in outcome.domains:
            if found.popularity:
                by_domain.setdefault(found.domain, {})[outcome.name] = found
    return [_popularity_table(domain, systems) for domain, systems in by_domain.items()]


def blend_lines(outcome: Outcome) -> list[Sentence]:
    """The settings of a blend as `--blend` takes them, where there was one."""
    if outcome.blend is None:
        return []
    written = validate(BlendConfig, outcome.blend, "blend").written()
    return [Sentence(f"scores are blended: --blend '{written}'")]


def stratum_notes(outcome: Outcome) -> list[str]:
    """Notes about targets that lie in the training part."""
    notes = []
    for found in outcome.domains:
        if found.held_out is None:
            continue
        num_targets = found.num_targets or found.num_users
        num_learned = num_targets - found.held_out.num_targets
        who = f"{outcome.name} was trained on this domain and the baselines count there, so both"
        if not found.learned_here and outcome.blend is not None:
            who = f"{outcome.name} was not trained on this domain, but its blend and the baselines count there, so both"
        elif not found.learned_here:
            who = f"{outcome.name} was not trained on this domain, but the baselines count there and"
        notes.append(
            f"{found.domain}: {num_learned:,} of the {num_targets:,} {outcome.scenario} targets lie in the training "
            f"part (the papers count them): {who} have seen them; the table of held-out targets is free of them"
        )
    return notes


def measure_title(found: DomainOutcome, scenario: str = "regular") -> str:
    """The title of a table: what was measured on which targets."""
    among = f"{found.num_items:,} items"
    if found.num_candidates is not None:
        among = f"the items of their lists, {found.num_candidates:.1f} on average"
    kind, of_users = "test" if scenario == "regular" else scenario, f"{found.num_users:,} users"
    if found.num_targets is not None and scenario in ("regular", "validation"):
        kind = f"{found.num_targets:,} {kind}"
    elif found.num_targets is not None:
        of_users = f"{of_users} ({found.num_targets:,} sub-sequences that end in one)"
    return (
        f"{found.domain}: {kind} targets of {of_users} among {among}, in %, "
        f"95 % intervals over users; {found.seen_target:.1%} of the targets were seen before and count as misses"
    )


def _popularity_table(domain: str, systems: Mapping[str, DomainOutcome]) -> PlainTable:
    first, *_ = systems.values()
    metric = shown_names(first.metrics)[-1]
    rows: list[list[Cell]] = []
    for name, stratum in first.popularity.items():
        baselines = [stratum.baselines.get(baseline, {}).get(metric) for baseline in first.baselines]
        ours = [
            found.popularity[name].metrics.get(metric) if name in found.popularity else None
            for found in systems.values()
        ]
        cells: list[Cell] = [name, stratum.num_targets]
        cells += [_percent(interval and interval.mean) for interval in baselines]
        cells += [_percent(interval) for interval in ours]
        rows.append(cells)
    title = f"{domain}: {metric.upper()} by how often the target's item occurs in training, in %"
    return PlainTable(title, ["occurrences", "targets", *first.baselines, *systems], rows)


def _percent(share: Interval | float | None) -> Percent | None:
    return None if share is None else Percent(share)
