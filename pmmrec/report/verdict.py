"""What came out of runs: one table, and the card of the checkpoint they left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import torch
from rich.table import Table
from torch import Tensor

from pmmrec.errors import DataError
from pmmrec.evaluation.metrics import metric_name, user_metrics
from pmmrec.evaluation.outcome import DomainOutcome, Outcome, read_outcome
from pmmrec.evaluation.significance import paired_interval
from pmmrec.report.tables import SHOWN_MEASURES, ResultRow, result_table, to_markdown
from pmmrec.zoo.card import CardDomain, make_card
from pmmrec.zoo.checkpoint import RECIPE_NAME, Checkpoint
from pmmrec.zoo.results import restate

CUTOFFS_SHOWN = (10,)
SHOWN = tuple(metric_name(measure, cutoff) for measure in SHOWN_MEASURES for cutoff in CUTOFFS_SHOWN)
RANKS_FILE = "ranks.parquet"


def result_rows(outcomes: Sequence[Outcome]) -> list[tuple[DomainOutcome, list[ResultRow]]]:
    """For each domain its floors and what every outcome reached on it."""
    by_domain: dict[str, tuple[DomainOutcome, list[ResultRow]]] = {}
    for outcome in outcomes:
        for found in outcome.domains:
            if found.domain not in by_domain:
                floors = [ResultRow(name, metrics) for name, metrics in found.floors.items()]
                by_domain[found.domain] = (found, floors)
            row = ResultRow(outcome.name, found.metrics, best_epoch=outcome.best_epoch)
            by_domain[found.domain][1].append(row)
    return list(by_domain.values())


def outcome_tables(outcomes: Sequence[Outcome]) -> list[Table]:
    """A table for each domain."""
    return [result_table(rows, CUTOFFS_SHOWN, title=_title(domain)) for domain, rows in result_rows(outcomes)]


def comparison(folders: Sequence[Path]) -> list[Table]:
    """Several runs side by side, then each against the first, user by user where both kept their ranks.

    DataError when they were not measured on the same users and items.
    """
    outcomes = _told_apart([read_outcome(folder) for folder in folders], folders)
    for outcome, folder in zip(outcomes, folders, strict=True):
        _same_measure(outcomes[0], outcome, folders[0], folder)
    shared = {found.fingerprint for found in outcomes[0].domains[:1]}
    ranked = {
        outcome.name: _user_figures(folder / RANKS_FILE)
        for outcome, folder in zip(outcomes, folders, strict=True)
        if (folder / RANKS_FILE).is_file() and {found.fingerprint for found in outcome.domains} == shared
    }
    return [*outcome_tables(outcomes), *([_differences(ranked)] if len(ranked) > 1 else [])]


def _told_apart(outcomes: Sequence[Outcome], folders: Sequence[Path]) -> list[Outcome]:
    """The same outcomes, those of one name called by their folders."""
    names = [outcome.name for outcome in outcomes]
    return [
        outcome if names.count(outcome.name) == 1 else outcome.model_copy(update={"name": str(folder)})
        for outcome, folder in zip(outcomes, folders, strict=True)
    ]


def write_card(folder: Path, outcome: Outcome, licence: str, place: str) -> None:
    """Put the figures and a card made of them into a checkpoint, which people will load as `place`."""
    checkpoint = Checkpoint.open(folder)
    domains = checkpoint.provenance["domains"]
    origin = checkpoint.provenance["started_from"]
    untransferred = "pretrained" if outcome.kind == "pretrain" else "trained from scratch"
    start = untransferred if origin == "none" else f"fine-tuned from {origin}"
    card = make_card(
        name=place,
        system=checkpoint.system,
        summary=f"A {checkpoint.system} model of width {checkpoint.index.width}, {start} on {', '.join(domains)}.",
        parts={name: entry.type for name, entry in checkpoint.held.items()},
        domains=[
            CardDomain(name, about["users"], about["items"], about["interactions"], tuple(about["modalities"]))
            for name, about in domains.items()
        ],
        recipe=(checkpoint.folder / RECIPE_NAME).read_text(encoding="utf-8"),
        results="\n".join(to_markdown(rows, title=_title(domain)) for domain, rows in result_rows([outcome])),
        licence=licence,
        commands=[
            f"pmmrec evaluate {place} DOMAIN",
            f"pmmrec finetune finetune/full --from {place} --on DOMAIN",
        ],
    )
    restate(folder, metrics=outcome.model_dump(mode="json"), card=card)


def _user_figures(path: Path) -> dict[str, Tensor]:
    rank_Q = pq.read_table(path, columns=["rank"])["rank"].to_numpy().copy()  # Arrow's own memory is read-only
    return user_metrics(torch.from_numpy(rank_Q), CUTOFFS_SHOWN)


def _differences(ranked: Mapping[str, Mapping[str, Tensor]]) -> Table:
    """Each system minus the first one, paired over users: an interval without 0 tells them apart."""
    first, *others = ranked
    rows = [
        ResultRow(
            f"{name} - {first}", {m: paired_interval(ranked[name][m], ranked[first][m]).difference for m in SHOWN}
        )
        for name in others
    ]
    return result_table(
        rows, CUTOFFS_SHOWN, title="differences in percentage points, paired over users, 95 % intervals"
    )


def _title(domain: DomainOutcome) -> str:
    return (
        f"{domain.domain}: test targets of {domain.num_users:,} users among {domain.num_items:,} items, in %, "
        f"95 % intervals over users; {domain.seen_target:.1%} of the targets were seen before and count as misses"
    )


def _same_measure(first: Outcome, other: Outcome, first_folder: Path, folder: Path) -> None:
    def measure(outcome: Outcome) -> dict[str, str]:
        return {found.domain: found.fingerprint for found in outcome.domains}

    for outcome, place in ((first, first_folder), (other, folder)):
        if not outcome.domains:
            raise DataError(f"{place}: its test targets were left alone (rank_test: false), so it has no test figures")
    shared = measure(first).keys() & measure(other).keys()
    differing = [name for name in shared if measure(first)[name] != measure(other)[name]]
    if not shared or differing or first.seen != other.seen:
        raise DataError(
            f"{folder}: measured on {', '.join(measure(other))} (seen: {other.seen}), {first_folder} on "
            f"{', '.join(measure(first))} (seen: {first.seen}); only figures on the same users and rules compare"
        )
