"""What domains hold, laid out for people; and the demo world, made and imported."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pmmrec.data.demo_world import DemoWorldConfig, write_demo_world
from pmmrec.data.domain import Domain
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.statistics import domain_statistics
from pmmrec.errors import RecipeError
from pmmrec.report.tables import PlainTable


def import_lines(domain: Domain) -> list[str]:
    """What an import read, kept and rejected."""
    lines = [f"{domain.folder}: domain {domain.name!r}", *domain.info.summary.lines()]
    if domain.info.summary.rejected:
        lines.append(f"each rejected row, with its reason: {domain.folder / 'rejected.parquet'}")
    return lines


def statistics_table(folders: Sequence[Path]) -> PlainTable:
    """Domains side by side, a fact a line."""
    found = [domain_statistics(Domain.open(folder)) for folder in folders]
    facts = list(type(found[0]).model_fields)
    rows = [[fact.replace("_", " "), *(getattr(one, fact) for one in found)] for fact in facts if fact != "name"]
    return PlainTable("", ["", *(Domain.open(folder).name for folder in folders)], rows)


def make_demo_world(out: Path, seed: int) -> Iterator[str]:
    """Make three small platforms below `out`, import each, and tell of it line by line."""
    if out.exists():
        raise RecipeError(f"--out {out}: exists; choose another folder or remove it")
    files = write_demo_world(out / "files", DemoWorldConfig(seed=seed))
    for name, folder in files.items():
        domain = import_table(
            TableImport(
                items=folder / "items.csv",
                interactions=folder / "interactions.csv",
                images=folder / "images",
                name=name,
                out=out / name,
                k_core=None,
            )
        )
        yield from import_lines(domain)
