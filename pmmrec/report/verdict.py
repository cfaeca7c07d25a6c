"""What came out of runs: one table, and the card of the checkpoint they left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from pmmrec.errors import DataError
from pmmrec.evaluation.outcome import DomainOutcome, Outcome, read_outcome
from pmmrec.report.tables import ResultRow, result_table, to_markdown
from pmmrec.zoo.card import CardDomain, make_card
from pmmrec.zoo.checkpoint import RECIPE_NAME, Checkpoint
from pmmrec.zoo.results import restate

CUTOFFS_SHOWN = (10,)


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
    """Several runs side by side. DataError when they were not measured on the same users and items."""
    outcomes = [read_outcome(folder) for folder in folders]
    for outcome, folder in zip(outcomes, folders, strict=True):
        _same_measure(outcomes[0], outcome, folders[0], folder)
    return outcome_tables(outcomes)


def write_card(folder: Path, outcome: Outcome, licence: str) -> None:
    """Put the figures and a card made of them into a checkpoint."""
    checkpoint = Checkpoint.open(folder)
    domains = checkpoint.provenance["domains"]
    origin = checkpoint.provenance["started_from"]
    start = "trained from scratch" if origin == "none" else f"fine-tuned from {origin}"
    card = make_card(
        name=outcome.name,
        system=checkpoint.system,
        summary=f"A {checkpoint.system} model of width {checkpoint.index.width}, {start} on {', '.join(domains)}.",
        parts={name: entry.type for name, entry in checkpoint.parts.items()},
        domains=[
            CardDomain(name, about["users"], about["items"], about["interactions"], tuple(about["modalities"]))
            for name, about in domains.items()
        ],
        recipe=(checkpoint.folder / RECIPE_NAME).read_text(encoding="utf-8"),
        results="\n".join(to_markdown(rows, title=_title(domain)) for domain, rows in result_rows([outcome])),
        licence=licence,
        commands=[
            f"pmmrec evaluate {outcome.name} DOMAIN",
            f"pmmrec finetune finetune/full --from {outcome.name} --on DOMAIN",
        ],
    )
    restate(folder, metrics=outcome.model_dump(mode="json"), card=card)


def _title(domain: DomainOutcome) -> str:
    return (
        f"{domain.domain}: test targets of {domain.num_users:,} users among {domain.num_items:,} items, in %, "
        f"95 % intervals over users; {domain.seen_target:.1%} of the targets were seen before and count as misses"
    )


def _same_measure(first: Outcome, other: Outcome, first_folder: Path, folder: Path) -> None:
    def measure(outcome: Outcome) -> dict[str, tuple[int, int]]:
        return {found.domain: (found.num_users, found.num_items) for found in outcome.domains}

    shared = measure(first).keys() & measure(other).keys()
    differing = [name for name in shared if measure(first)[name] != measure(other)[name]]
    if not shared or differing or first.seen != other.seen:
        raise DataError(
            f"{folder}: measured on {', '.join(measure(other))} (seen: {other.seen}), {first_folder} on "
            f"{', '.join(measure(first))} (seen: {first.seen}); only figures on the same users and rules compare"
        )
