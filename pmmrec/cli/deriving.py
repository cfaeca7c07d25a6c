"""Commands that make something of domains: data sample, data merge, data export."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from pmmrec.cli.options import DomainFolder, split_rule
from pmmrec.terminal import errors_for_people, show

if TYPE_CHECKING:
    from pmmrec.data.domain import Domain

NewDomain = Annotated[Path, Option("--out", metavar="FOLDER", help="Folder to make.")]
NewName = Annotated[str | None, Option("--name", help="Of the new domain; default: that of its folder.")]


class SameIds(str, Enum):
    """What to do with ids that occur in several domains."""

    REFUSE = "refuse"
    PREFIX = "prefix"


class Layout(str, Enum):
    """What an export writes."""

    PARQUET = "parquet"
    CSV = "csv"
    RECBOLE = "recbole"
    MMREC = "mmrec"


def sample_command(
    domain: DomainFolder,
    out: NewDomain,
    users: Annotated[int | None, Option(help="How many users to draw; default: all.")] = None,
    items: Annotated[
        str, Option(help="used: items that these users touched; all: the catalogue; a number: drawn first.")
    ] = "used",
    seed: Annotated[int, Option(help="Of the draw; a smaller sample is part of a larger one.")] = 0,
    name: NewName = None,
) -> None:
    """Make a smaller domain of some of the users, some of the items, or both. Ids and order stay."""
    from pmmrec.data.derived.sample import SampleConfig, sample_domain
    from pmmrec.settings import validate

    with errors_for_people():
        chosen = int(items) if items.isdecimal() else items
        tree = {"domain": domain, "users": users, "items": chosen, "seed": seed}
        _show_made(sample_domain(validate(SampleConfig, {**tree, **_made(out, name)}, "arguments")))


def merge_command(
    domains: Annotated[list[Path], Argument(metavar="DOMAIN DOMAIN...", help="Domain folders.")],
    out: NewDomain,
    same_ids: Annotated[
        SameIds, Option(help="Ids that occur in several: refuse them, or make them DOMAIN:ID.")
    ] = SameIds.REFUSE,
    name: NewName = None,
) -> None:
    """Make one domain of several: catalogues and users one after another."""
    from pmmrec.data.derived.merge import MergeConfig, merge_domains
    from pmmrec.settings import validate

    with errors_for_people():
        tree = {"domains": domains, "same_ids": same_ids.value, **_made(out, name)}
        _show_made(merge_domains(validate(MergeConfig, tree, "arguments")))


def export_command(
    domain: DomainFolder,
    kind: Annotated[Layout, Option(help="parquet or csv: two tables; recbole, mmrec: what these read.")],
    out: NewDomain,
    split: Annotated[
        str | None, Option(metavar="RULE", help="Also write parts: leave_one_out, '{type: given, name: NAME}', ...")
    ] = None,
    images: Annotated[bool, Option(help="Whether to write pictures.")] = True,
    escape_formulas: Annotated[
        bool, Option("--escape-formulas", help="csv, mmrec: put a ' before values that a spreadsheet would compute.")
    ] = False,
) -> None:
    """Write a domain as files that other programs read, and `pmmrec data import` reads again."""
    from pmmrec.data.exporters.export import ExportConfig, export_domain
    from pmmrec.settings import validate

    with errors_for_people():
        tree: dict[str, Any] = {"domain": domain, "kind": kind.value, "out": out, "images": images}
        tree |= {"escape_formulas": True} if escape_formulas else {}
        if split is not None:
            tree["split"] = split_rule(split, "--split")
        show(*export_domain(validate(ExportConfig, tree, "arguments")))


def _made(out: Path, name: str | None) -> Mapping[str, Any]:
    return {"out": out, "name": out.name if name is None else name}


def _show_made(domain: Domain) -> None:
    from pmmrec.report.domains import derived_lines

    show(*derived_lines(domain))
