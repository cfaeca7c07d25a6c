"""Make one domain of several: their catalogues and users one after another."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from pmmrec.data.dates import unit_of_times
from pmmrec.data.derived.parts import Described, Part, write_parts
from pmmrec.data.domain import Domain
from pmmrec.data.info import NAME_PATTERN, Filters
from pmmrec.errors import DataError, RecipeError
from pmmrec.settings import Config, Place

MAX_SHOWN = 3


class MergeConfig(Config):
    """Settings of a merge."""

    domains: tuple[Place, ...] = Field(min_length=2, description="Folders of the domains, in order.")
    out: Place = Field(description="Folder of the new domain; must not exist.")
    name: str = Field(pattern=NAME_PATTERN, description="What reports call the new domain.")
    same_ids: Literal["refuse", "prefix"] = Field(
        "refuse",
        description="What to do with ids that occur in several domains. prefix: they become DOMAIN:ID, by the names of "
        "the domains; equal ids never mean one item or one user.",
    )


def merge_domains(config: MergeConfig) -> Domain:
    """Write the items, users and sequences of several domains as a new one. Sequences and all other ids stay.

    Image files are hard links where the disk allows it. Raises DataError where ids occur in several domains and are to
    be refused, and where times have several units; RecipeError for a domain that is named twice.
    """
    domains = [Domain.open(folder) for folder in config.domains]
    names = [domain.name for domain in domains]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if len({domain.folder.resolve() for domain in domains}) < len(domains):
        raise RecipeError("a domain is named twice; name each once")
    if twice and config.same_ids == "prefix":
        raise RecipeError(f"two domains are called {twice[0]!r}, so ids would stay equal; import one by another name")
    _refuse_other_units(domains)
    items = _new_ids("item", [(one.name, one.item_ids.to_pylist()) for one in domains], config)
    users = _new_ids("user", [(one.name, one.user_ids.to_pylist()) for one in domains], config)
    parts = [
        dataclasses.replace(Part.whole(domain), new_item_ids=of_items, new_user_ids=of_users)
        for domain, of_items, of_users in zip(domains, items, users, strict=True)
    ]
    rules = [one.info.filters.model_copy(update={"sample_users": None, "seed": None}) for one in domains]
    filters = rules[0] if all(rule == rules[0] for rule in rules) else Filters(k_core=None)
    notes = [
        f"{kind}s: {sum(map(len, found)):,} ids occur in several domains and now begin with the name of theirs"
        for kind, found in (("item", items), ("user", users))
        if any(found)
    ]
    described = Described(config.name, filters, domains[0].info.time_unit, notes=tuple(notes))
    return write_parts(parts, config.out, described)


def _refuse_other_units(domains: Sequence[Domain]) -> None:
    """DataError where some domains have times and others none, or times of another unit."""
    units = [(one.info.time_unit, unit_of_times(one)) for one in domains]
    if len(set(units)) > 1:
        named = zip(domains, units, strict=True)
        told = ", ".join(f"{one.name} has {unit or stored or 'none'}" for one, (stored, unit) in named)
        raise DataError(f"times have several units: {told}; import the tables anew so that all have one")


def _new_ids(kind: str, named: Sequence[tuple[str, Sequence[str]]], config: MergeConfig) -> list[dict[str, str]]:
    """The new ids of those that occur in several domains, for each domain. Raises as `merge_domains`."""
    counts = Counter(one for _, ids in named for one in ids)
    shared = [one for one, count in counts.items() if count > 1]
    if shared and config.same_ids == "refuse":
        found = f"{len(shared):,} {kind} ids occur in several of {', '.join(name for name, _ in named)}"
        raise DataError(f"{found}, such as {shared[:MAX_SHOWN]}; `--same-ids prefix` makes them differ")
    new_ids = [{one: f"{name}:{one}" for one in ids if counts[one] > 1} for name, ids in named]
    taken = [one for found in new_ids for one in found.values() if one in counts]
    if taken:
        raise DataError(f"{kind} id {taken[0]!r} is taken already; import one of the domains under another name")
    return new_ids
