"""Report leakage of domains in tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pmmrec.data.domain import Domain
from pmmrec.data.leakage import Doubles, Leakage, leakage_of
from pmmrec.data.splits import split_of
from pmmrec.settings import PartConfig
from pmmrec.tables import Cell, PlainTable


@dataclass(frozen=True)
class LeakageReport:
    """The leakage of several domains under one split."""

    domains: tuple[Leakage, ...]

    @classmethod
    def of(cls, folders: Sequence[Path], split: PartConfig, sources: Sequence[Path]) -> LeakageReport:
        """Read domains and count. DataError if a folder is not a domain, or has nothing that the split needs."""
        others = tuple(Domain.open(source) for source in sources)
        return cls(tuple(leakage_of(split_of(split, Domain.open(folder)), others) for folder in folders))

    def tables(self) -> list[PlainTable]:
        """A table with a column per domain, and one with a row per domain and source."""
        facts = [dict(_facts(one)) for one in self.domains]
        rows = [[fact, *(found[fact] for found in facts)] for fact in facts[0]]
        tables = [PlainTable("", [f"split {self.domains[0].split}", *(one.name for one in self.domains)], rows)]
        shared: list[list[Cell]] = [
            [one.name, other.source, other.users, other.items, other.texts, other.images]
            for one in self.domains
            for other in one.shared
        ]
        if shared:
            heads = ["domain", "source", "users", "items", "items with its texts", "items with its images"]
            tables.append(PlainTable("In common with sources", heads, shared))
        return tables


def _facts(one: Leakage) -> list[tuple[str, Cell]]:
    rows: list[tuple[str, Cell]] = []
    for part in one.targets:
        name, share = part.holdout, part.share_of_training_after
        rows += [
            (f"{name} targets", part.num_targets),
            (f"{name}: users with a target or more", part.num_users),
            (f"{name}: seen in training by the same user", part.num_seen),
            (f"{name}: as late as the interaction before", part.num_tied),
            (f"{name}: before a training interaction of another user", part.num_before_training),
            (f"{name}: share of training that is later, mean, %", None if share is None else round(100 * share, 1)),
        ]
    doubles = [("users with the sequence of another", one.users), ("items with the text of another", one.texts)]
    doubles.append(("items with the image of another", one.images))
    return rows + [(fact, _counted(found)) for fact, found in doubles]


def _counted(found: Doubles) -> str:
    return f"{found.num_equal:,} in {found.num_groups:,} groups" if found.num_equal else "0"
