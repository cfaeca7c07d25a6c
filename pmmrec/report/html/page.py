"""Build a self-contained HTML page from runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, model_validator
from typing_extensions import Self

from pmmrec.atomic import whole_file
from pmmrec.data.domain import Domain
from pmmrec.errors import DataError, RecipeError
from pmmrec.evaluation.ranking import Seen
from pmmrec.evaluation.scenarios import POPULARITY
from pmmrec.homes import CACHE, expanded
from pmmrec.naming import suffix_of
from pmmrec.report.comparison import ComparedSystem, compare, read_systems
from pmmrec.report.epochs import EVENTS_FILE, Epoch, best_epoch, judged_by, read_epochs
from pmmrec.report.html import require_report
from pmmrec.report.html.cases import Case, add_lists, sample_cases
from pmmrec.report.html.checkpoints import MeasuredRun, ShownCheckpoint, shown_checkpoints
from pmmrec.report.html.domains import domains_read
from pmmrec.report.html.drawing import draw_curves, draw_map
from pmmrec.report.html.encoded_domain import EncodedDomain, SampledHistories
from pmmrec.report.html.maps import LEAST_POINTS, largest_groups, perplexity_for, project, sampled
from pmmrec.report.html.pictures import PageImage, data_uri
from pmmrec.report.outcomes import popularity_tables, stratum_notes
from pmmrec.report.ranks import ranks_file
from pmmrec.settings import Config, Place
from pmmrec.tables import PlainTable, are_texts, shown

NO_DOMAIN = Path("none")
PAGE_FILE = "report.html"
TEMPLATE = "page.html.j2"
MOST_LISTS = 4  # systems with lists on the page
LENGTHS = {"1 item": 1, "2-4 items": 2, "5-9 items": 5, "10-19 items": 10, "20 items or more": 20}


class ReportPlan(Config):
    """The content of a page, and where it is written."""

    out: Place = Field(description="A folder to make, or an .html file.")
    domains: tuple[Place, ...] = Field(
        (),
        description="Domain folders for maps and lists; empty: those that the runs read; `none`: no maps or lists.",
    )
    checkpoints: tuple[str, ...] = Field(
        (), description="[NAME=]PLACE of each checkpoint; empty: one of each system that kept one, best first."
    )
    metric: str | None = Field(None, description="Metric of the curves; null: the validation metric of the first run.")
    attribute: str | None = Field(None, description="Item attribute that colours the map.")
    num_users: int = Field(6, ge=0, le=100, description="Number of users with lists.")
    top_k: int = Field(10, ge=1, le=50, description="Length of a list.")
    num_points: int = Field(
        1000, ge=LEAST_POINTS, le=20_000, description="Number of items, and of users, on a map; drawn at random."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of random draws and of the maps.")
    hub: Place = Path("hub")
    base: str | None = None
    cache: Path = CACHE

    @model_validator(mode="after")
    def _options_have_an_effect(self) -> Self:
        for option, value in (("checkpoint", self.checkpoints), ("attribute", self.attribute), ("base", self.base)):
            if self.domains == (NO_DOMAIN,) and value:
                raise ValueError(f"{option}: has no effect with `--domain none`; leave one of the two out")
        return self


@dataclass
class ReportPage:
    """The input of the template, and pictures to write beside the page by file name."""

    title: str
    tables: list[PlainTable]
    words: list[str]
    runs: PlainTable
    curves: PageImage | None = None
    maps: list[PageImage] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    cases_of: str = ""
    notes: list[str] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)


def write_report(words: Sequence[str], plan: ReportPlan, warn: Callable[[str], None]) -> list[Path]:
    """Read runs (named as in `compare`) and write the page; returns the files. `warn` gets a note on each gap.

    Raises RecipeError if the output exists or has the suffix of another format, and what `read_systems` and opening
    domains raise.
    """
    require_report()
    is_file = bool(plan.out.suffix and suffix_of(plan.out, (".html", ".htm"), "--out", ", or name a folder"))
    if plan.out.exists():
        raise RecipeError(f"--out {plan.out}: exists; choose another place or remove it")
    systems = read_systems(words)
    page = _page(systems, plan)
    for note in page.notes:
        warn(note)
    text = render(page)
    if is_file:
        return [_write(plan.out, text.encode("utf-8"))]
    files = {PAGE_FILE: text.encode("utf-8"), **page.pictures}
    return [_write(plan.out / name, data) for name, data in files.items()]


def render(page: ReportPage) -> str:
    """The page as HTML without scripts or external resources. All text is escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template(TEMPLATE)
    html: str = template.render(page=page, shown=shown, is_text=are_texts)
    return html


def _page(systems: Sequence[ComparedSystem], plan: ReportPlan) -> ReportPage:
    compared = compare(systems)
    names = [system.name for system in systems]
    page = ReportPage(
        title=f"{', '.join(names)} on {_on(systems)}",
        tables=[*compared.tables, *compared.tests],
        words=compared.lines(),
        runs=_runs_table(systems),
    )
    firsts = [system.outcomes[0].model_copy(update={"name": _first_seed(system)}) for system in systems]
    page.tables += popularity_tables(firsts)
    page.notes += [note for outcome in firsts for note in stratum_notes(outcome)]
    _add_curves(page, systems, plan)
    if plan.domains == (NO_DOMAIN,):
        return page
    given = _opened(plan.domains)
    found = shown_checkpoints(systems, plan.checkpoints, plan.base, plan.hub)
    if not found:
        page.notes.append("no maps and no lists of users: no run here kept a checkpoint; give --checkpoint PLACE")
        return page
    domains = given or domains_read(systems)
    if not domains:
        page.notes.append("no maps and no lists of users: they need the items, so give --domain FOLDER")
        return page
    _add_domains(page, found, domains, plan)
    return page


def _opened(folders: Sequence[Path]) -> list[Domain]:
    domains = {folder: Domain.open(folder) for folder in folders}
    names = [domain.name for domain in domains.values()]
    twice = [name for name in names if names.count(name) > 1]
    if twice or len(domains) < len(folders):
        raise RecipeError(f"--domain: {(twice or names)[0]!r} is named twice; name each domain once")
    return list(domains.values())


def _first_seed(system: ComparedSystem) -> str:
    return system.name if len(system.folders) == 1 else f"{system.name} (first seed)"


def _on(systems: Sequence[ComparedSystem]) -> str:
    return ", ".join(dict.fromkeys(name for system in systems for name in system.domains))


def _runs_table(systems: Sequence[ComparedSystem]) -> PlainTable:
    """A table of the runs, one row each."""
    rows: list[list[Any]] = []
    for system in systems:
        for folder, outcome in zip(system.folders, system.outcomes, strict=True):
            seconds = None if outcome.training_s is None else round(outcome.training_s)
            rows.append([system.name, str(folder), outcome.kind, outcome.best_epoch, outcome.num_epochs, seconds])
    columns = ["system", "folder", "kind", "best epoch", "epochs", "training, s"]
    return PlainTable("the runs", columns, rows)


def _add_curves(page: ReportPage, systems: Sequence[ComparedSystem], plan: ReportPlan) -> None:
    """Add validation by epoch of every system whose runs kept their events (PMMRec, figure 3)."""
    trained: dict[str, list[list[Epoch]]] = {}
    metric = plan.metric
    for system in systems:
        folders = [folder for folder in system.folders if (folder / EVENTS_FILE).is_file()]
        if len(folders) < len(system.folders):
            page.notes.append(f"{system.name}: no curve, because it has no {EVENTS_FILE}: nothing was trained")
        if folders:
            metric = metric or judged_by(folders[0])
            trained[system.name] = [_judged(folder, metric, plan.metric) for folder in folders]
    if not trained or metric is None:
        return
    bests = {name: [best_epoch(epochs, metric) for epochs in seeds] for name, seeds in trained.items()}
    told = [
        f"{name}: best {', '.join(f'{100 * best.value:.1f} % at epoch {best.epoch}' for best in found)}"
        for name, found in bests.items()
    ]
    page.pictures["curves.png"] = png = draw_curves(trained, metric)
    several = " One line for each seed." if any(len(seeds) > 1 for seeds in trained.values()) else ""
    caption = f"Validation {metric.upper()} by epoch. A marker shows the epoch whose weights were kept.{several}"
    page.curves = PageImage(
        data_uri(png, "png"), f"Line chart of validation {metric.upper()}. {'; '.join(told)}.", caption
    )


def _judged(folder: Path, metric: str, asked: str | None) -> list[Epoch]:
    """The epochs of a run, after checking that each has the metric."""
    epochs = read_epochs(folder)
    for epoch in epochs:
        if metric not in epoch.metrics:
            known = f"{folder / EVENTS_FILE}: epoch {epoch.epoch} has no {metric!r}; it has {', '.join(epoch.metrics)}"
            raise DataError(known) if asked is None else RecipeError(f"--metric {asked}: {known}")
    return epochs


def _add_domains(page: ReportPage, found: Sequence[ShownCheckpoint], domains: list[Domain], plan: ReportPlan) -> None:
    """Add maps of the items and users of all domains by the first checkpoint, and lists of sample users."""
    all_encoded = [_encode(found[0], domain, plan) for domain in _known_to(found[0], domains)]
    _add_item_map(page, all_encoded, plan, found[0].name)
    _add_user_map(page, all_encoded, plan, found[0].name)
    if plan.num_users:
        _add_cases(page, found, all_encoded, plan)


def _known_to(entry: ShownCheckpoint, domains: list[Domain]) -> list[Domain]:
    """The domains that a checkpoint can encode: a model with item ids only knows those of its run."""
    if not entry.checkpoint.model_config.item_encoder.knows_ids or entry.run is None:
        return domains
    measured = {found.domain for found in entry.run.outcome.domains}
    return [domain for domain in domains if domain.name in measured] or domains


def _encode(entry: ShownCheckpoint, domain: Domain, plan: ReportPlan) -> EncodedDomain:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return EncodedDomain.open(entry.checkpoint, domain, expanded(plan.cache), device)


def _add_cases(
    page: ReportPage, found: Sequence[ShownCheckpoint], all_encoded: list[EncodedDomain], plan: ReportPlan
) -> None:
    """Add lists for users of one domain by each checkpoint whose run was measured there."""
    chosen: EncodedDomain | None = None
    for entry in found[:MOST_LISTS]:
        if entry.run is None:
            page.notes.append(
                f"no lists of {entry.name}: it is not the checkpoint of a run here; say NAME=PLACE if it made the "
                "ranks of NAME"
            )
            continue
        encoded = chosen or _measured_domain(page, entry.run, all_encoded)
        if encoded is None or (ranks := _ranks_of(page, entry.run, encoded.domain.name)) is None:
            continue
        if chosen is None:
            page.cases = sample_cases(encoded.split, ranks, plan.num_users, plan.seed)
        encoded = encoded if entry is found[0] else _encode(entry, encoded.domain, plan)
        seen: Seen = "include" if entry.run.outcome.seen == "include" else "exclude"
        add_lists(page.cases, encoded, entry.name, ranks, plan.top_k, seen)
        chosen = chosen or encoded
    if len(found) > MOST_LISTS:
        left = ", ".join(entry.name for entry in found[MOST_LISTS:])
        page.notes.append(
            f"no lists of {left}: lists of {MOST_LISTS} are shown; name others with --checkpoint NAME=PLACE"
        )
    if chosen is not None:
        names = dict.fromkeys(one.system for case in page.cases for one in case.lists)
        page.cases_of = f"{', '.join(names)} on {chosen.domain.name}"


def _measured_domain(page: ReportPage, run: MeasuredRun, all_encoded: list[EncodedDomain]) -> EncodedDomain | None:
    """The first encoded domain that a run was measured on. DataError where its content differs."""
    measured = {found.domain: found.fingerprint for found in run.outcome.domains}
    for encoded in all_encoded:
        domain = encoded.domain
        if domain.name in measured and measured[domain.name] != domain.fingerprint:
            raise DataError(
                f"{domain.folder}: is not the {domain.name} that {run.folder} was measured on, its content differs; "
                "name the folder that the run read"
            )
    here = [encoded for encoded in all_encoded if encoded.domain.name in measured]
    if not here or run.outcome.scenario != "regular":
        known = ", ".join(measured)
        page.notes.append(
            f"no lists of users: {run.name} was measured on {run.outcome.scenario} targets of {known}; they need "
            "regular ones, and that domain"
        )
        return None
    return here[0]


def _ranks_of(page: ReportPage, run: MeasuredRun, domain: str) -> Path | None:
    """The file of ranks that a run kept of a domain; None with a note if there is none."""
    if domain not in [found.domain for found in run.outcome.domains]:
        page.notes.append(f"no lists of {run.name}: it was not measured on {domain}")
        return None
    ranks = ranks_file(run.folder, run.outcome, domain)
    if not ranks.is_file():
        page.notes.append(f"no lists of {run.name}: {ranks} is missing; measure the run again to keep its ranks")
        return None
    return ranks


def _add_item_map(page: ReportPage, all_encoded: list[EncodedDomain], plan: ReportPlan, whose: str) -> None:
    vectors, groups = [], list[str]()
    for encoded in all_encoded:
        rows = sampled(encoded.domain.num_items, plan.num_points // len(all_encoded), plan.seed)
        rows = rows[encoded.contents.is_readable_N[rows]]
        vectors.append(encoded.item_vectors(rows))
        groups += _item_groups(encoded, rows.tolist(), plan, several=len(all_encoded) > 1)
    by = "domain" if len(all_encoded) > 1 else plan.attribute or "occurrences in training"
    _add_map(page, "items", torch.cat([torch.from_numpy(v) for v in vectors]), groups, plan, f"by {by}", whose)


def _item_groups(encoded: EncodedDomain, rows: list[int], plan: ReportPlan, *, several: bool) -> list[str]:
    """The group of each item: its domain, an attribute, or how often it occurs in training."""
    if plan.attribute is not None and not several:
        values = encoded.domain.attribute(plan.attribute)
        return largest_groups([values[row] for row in rows])
    if several:
        return [encoded.domain.name] * len(rows)
    counts = encoded.split.train_counts
    return [_step(POPULARITY, int(counts[row])) for row in rows]


def _step(steps: Mapping[str, int], count: int) -> str:
    """The highest step whose threshold the count reaches."""
    return [name for name, least in steps.items() if count >= least][-1]


def _add_user_map(page: ReportPage, all_encoded: list[EncodedDomain], plan: ReportPlan, whose: str) -> None:
    vectors, groups = [], list[str]()
    for encoded in all_encoded:
        users = sampled(encoded.domain.num_users, plan.num_points // len(all_encoded), plan.seed).tolist()
        each = [encoded.domain.sequence(user) for user in users]
        vectors.append(encoded.user_vectors(SampledHistories.of(users, each)))
        if len(all_encoded) > 1:
            groups += [encoded.domain.name] * len(users)
        else:
            groups += [_step(LENGTHS, len(one)) for one in each]
    by = "domain" if len(all_encoded) > 1 else "length of history"
    _add_map(page, "users", torch.cat([torch.from_numpy(v) for v in vectors]), groups, plan, f"by {by}", whose)


def _add_map(
    page: ReportPage, what: str, vectors_ND: torch.Tensor, groups: list[str], plan: ReportPlan, by: str, whose: str
) -> None:
    num_points = len(vectors_ND)
    if num_points < LEAST_POINTS:
        page.notes.append(f"no map of {what}: {num_points} are too few; it takes {LEAST_POINTS}")
        return
    order = [*POPULARITY, *LENGTHS]  # legends go from few to many; other names keep their order
    ranked = sorted(range(num_points), key=lambda row: order.index(groups[row]) if groups[row] in order else 0)
    point_N2 = project(vectors_ND.numpy(), plan.seed)
    page.pictures[f"{what}.png"] = png = draw_map(point_N2[ranked], [groups[row] for row in ranked])
    counted = ", ".join(f"{group}: {groups.count(group)}" for group in dict.fromkeys(groups[row] for row in ranked))
    caption = (
        f"{num_points:,} {what} as {whose} sees them, {by} (t-SNE, perplexity {perplexity_for(num_points):.0f}, seed "
        f"{plan.seed}). Close points are similar; distances between far groups and the axes have no meaning."
    )
    page.maps.append(PageImage(data_uri(png, "png"), f"Map of {num_points} {what}, {by}. {counted}.", caption))


def _write(path: Path, data: bytes) -> Path:
    with whole_file(path, replace=False) as draft:
        draft.write_bytes(data)
    return path
