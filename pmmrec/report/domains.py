"""Describe domains, and make and import the demo world."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pmmrec.atomic import make_folder, writing_to
from pmmrec.data.demo_world import DemoWorldConfig, write_demo_world
from pmmrec.data.domain import Domain
from pmmrec.data.importers.folder import KindLine, kind_lines
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.info import MATCHES_FILE
from pmmrec.data.statistics import COLD_BELOW, CountTokens, DomainStatistics, domain_statistics
from pmmrec.errors import MachineError, RecipeError
from pmmrec.homes import expanded
from pmmrec.tables import Cell, PlainTable

MAX_TOKENS = 100_000  # of a text that is counted; none has more characters than a tenth of it


def import_lines(domain: Domain) -> list[str]:
    """Lines about what an import read, kept and rejected."""
    lines = derived_lines(domain)
    if domain.info.summary.rejected or domain.info.summary.filtered:
        lines.append(f"each row that was left out, with its reason: {domain.folder / 'rejected.parquet'}")
    if (domain.folder / MATCHES_FILE).exists():
        lines.append(f"what became of each picture, and which items have none: {domain.folder / MATCHES_FILE}")
    return lines


def derived_lines(domain: Domain) -> list[str]:
    """Lines about what a domain took from others."""
    return [f"{domain.folder}: domain {domain.name!r}", *domain.info.summary.lines()]


@dataclass(frozen=True)
class KindList:
    """The kinds of data sets that can be imported by their folder."""

    kinds: tuple[KindLine, ...]

    @classmethod
    def all(cls) -> KindList:
        """Those of this project and of plugins."""
        return cls(tuple(kind_lines()))

    def table(self) -> PlainTable:
        """A row for each kind."""
        rows: list[list[Cell]] = [[one.name, one.expects, ", ".join(one.settings)] for one in self.kinds]
        return PlainTable("", ["kind", "files", "settings (--set)"], rows)


@dataclass(frozen=True)
class Statistics:
    """The statistics of several domains."""

    domains: tuple[DomainStatistics, ...]

    @classmethod
    def of(cls, folders: Sequence[Path], tokenizer: Path | None = None) -> Statistics:
        """Compute the statistics of domain folders; `tokenizer`: a folder with one, whose tokens are counted.

        Raises DataError if one is not a domain, CheckpointError for a folder without a tokenizer.
        """
        count = None if tokenizer is None else _token_counter(expanded(tokenizer))
        return cls(tuple(domain_statistics(Domain.open(folder), count) for folder in folders))

    def table(self) -> PlainTable:
        """A table with one column per domain."""
        facts: dict[str, Callable[[DomainStatistics], Cell]] = {
            "users": lambda one: one.num_users,
            "items": lambda one: one.num_items,
            "interactions": lambda one: one.num_interactions,
            "mean length": lambda one: round(one.mean_length, 1),
            "median length": lambda one: one.median_length,
            "longest": lambda one: one.longest,
            "sparsity, %": lambda one: f"{100 * one.sparsity:.3f}",
            "repeated interactions, %": lambda one: round(100 * one.share_repeated, 1),
            "items with text": lambda one: one.num_with_text,
            "items with image": lambda one: one.num_with_image,
            "words of a text, mean": lambda one: _rounded(one.mean_words),
            "characters of a text, mean": lambda one: _rounded(one.mean_characters),
            "tokens of a text, mean": lambda one: _rounded(one.mean_tokens),
            f"cold items (< {COLD_BELOW} in train)": lambda one: one.num_cold_items,
        }
        if all(one.mean_tokens is None for one in self.domains):
            del facts["tokens of a text, mean"]
        for name in sorted({name for one in self.domains for name in one.num_with_column}):
            facts[f"items with column {name}"] = partial(_num_with, name)
        rows = [[fact, *(figure(one) for one in self.domains)] for fact, figure in facts.items()]
        return PlainTable("", ["", *(one.name for one in self.domains)], rows)


def _token_counter(folder: Path) -> CountTokens:
    """How many tokens the tokenizer in a folder makes of each text."""
    from pmmrec.encoders.tokenizer import FolderTokenizer

    tokenizer = FolderTokenizer(folder, MAX_TOKENS, lowercase=False)
    return lambda texts: [len(token_ids) for token_ids in tokenizer.encode(texts)]


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 1)


def _num_with(column: str, one: DomainStatistics) -> int:
    return one.num_with_column.get(column, 0)


def make_demo_world(out: Path, seed: int) -> Iterator[str]:
    """Make three small platforms below `out` and import each; yields lines of progress."""
    out = expanded(out)
    try:
        with writing_to(out):
            make_folder(out, exist_ok=False)
    except MachineError as error:
        if not isinstance(error.__cause__, FileExistsError):
            raise
        raise RecipeError(f"--out {out}: exists; choose another folder or remove it") from error
    try:
        yield from _platforms(out, seed)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # an incomplete world would block the next attempt
        raise


def _platforms(out: Path, seed: int) -> Iterator[str]:
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
