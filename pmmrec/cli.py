"""The verbs of the command line. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import runpy
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from pmmrec.errors import MachineError, RecipeError
from pmmrec.terminal import errors_for_people, named_folders, run_program, say_problems, show, show_any_letter, warn

app = typer.Typer(
    help="Recommenders that transfer: import platforms, pretrain on some, recommend on one never seen.",
    epilog="The four jobs: data import, pretrain, finetune, evaluate or score. Start with: pmmrec recipe list",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make a domain of a platform's files, describe it, check it.", no_args_is_help=True)
import_app = typer.Typer(help="Import one platform; each layout of files is one verb.", no_args_is_help=True)
recipe_app = typer.Typer(help="Find, read, copy and check recipes.", no_args_is_help=True)
zoo_app = typer.Typer(help="Find, read and check checkpoints.", no_args_is_help=True)
data_app.add_typer(import_app, name="import")
for room, name in ((data_app, "data"), (recipe_app, "recipe"), (zoo_app, "zoo")):
    app.add_typer(room, name=name)

_PASSED_ON = {"allow_extra_args": True, "ignore_unknown_options": True}
Checkpoint = Annotated[str, Argument(help="A checkpoint folder, or its name in the hub.")]
DomainFolder = Annotated[Path, Argument(metavar="DOMAIN", help="A domain folder.")]
HubFolder = Annotated[Path, Option("--hub", help="The folder hub in which names are looked up.")]
CacheFolder = Annotated[Path | None, Option("--cache", help="Where tokens and pixels are kept between runs.")]
HUB = Path("hub")


class Seen(str, Enum):
    """What happens to the items that a user has touched already."""

    EXCLUDE = "exclude"
    INCLUDE = "include"


Popularity = Annotated[
    float | None, Option(min=0, help="Weight of popularity in the score; the checkpoint's unless given, 0 for none.")
]
MaxUnreadable = Annotated[
    float, Option(min=0, max=1, help="Share of the items that may lack all that the model reads; they are never found.")
]
SeenOption = Annotated[Seen, Option(help="exclude: seen items are no candidates; include: all items are.")]


app.callback()(show_any_letter)


def _start(program: str, arguments: list[str]) -> None:
    from pmmrec.shipped import shipped_file

    with errors_for_people():
        path = shipped_file(program)
    story = runpy.run_path(str(path), run_name=f"pmmrec_{path.parent.name}_run")
    sys.argv = [f"pmmrec {path.parent.name}", *arguments]  # what its usage and the log of its run call it
    run_program(story["main"])


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def pretrain(context: typer.Context) -> None:
    """Pretrain on several domains: RECIPE \\[a.b=c ...] \\[--dry-run]."""
    _start("pretrain/run.py", context.args)


@app.command(context_settings=_PASSED_ON, add_help_option=False)
def finetune(context: typer.Context) -> None:
    """Train on one domain: RECIPE --from CHECKPOINT|none --on DOMAIN \\[a.b=c ...] \\[--dry-run]."""
    _start("finetune/run.py", context.args)


@app.command()
def tune(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="A file or a shipped recipe, of either verb.")],
    space: Annotated[Path, Option(help="YAML file: what is tried for each setting.")],
    trials: Annotated[int, Option(min=1, help="Trials in all, those of earlier starts included.")],
    overrides: Annotated[list[str] | None, Argument(metavar="A.B=C...", help="Settings that all trials share.")] = None,
    start_from: Annotated[
        str | None, Option("--from", metavar="CHECKPOINT", help="For a fine-tuning: as there; none: from scratch.")
    ] = None,
    on: Annotated[Path | None, Option(metavar="DOMAIN", help="For a fine-tuning: as there.")] = None,
    name: Annotated[str | None, Option(help="Folder of the search below --runs; the recipe's name with -tune.")] = None,
    runs: Annotated[Path | None, Option(help="Where it is made; the recipe's runs.")] = None,
    timeout: Annotated[float | None, Option(metavar="MINUTES", help="Start no further trial after so long.")] = None,
    jobs: Annotated[int, Option(min=1, help="Trials at a time; they share the machine and its GPU.")] = 1,
    seed: Annotated[int, Option(min=0, help="Of what is proposed; the runs keep the recipe's seed.")] = 1,
    prune: Annotated[bool, Option(help="End trials early that stay below the median of five or more.")] = True,
    prune_after: Annotated[int, Option(min=0, metavar="EPOCHS", help="Epochs that every trial gets.")] = 3,
    keep_checkpoints: Annotated[
        bool, Option("--keep-checkpoints", help="Keep the weights of all trials, not of the best alone.")
    ] = False,
    weights: Annotated[list[str] | None, Option(metavar="NAME=FOLDER", help="As in pretrain and finetune.")] = None,
) -> None:
    """Search for settings on validation alone; the same command again goes on where it was stopped.

    Each trial is a run of its own, below trials/; the first is the recipe as it stands. No trial ranks test targets or
    is published: run the best.yaml that is left, once, for that. Of all checkpoints the best alone is kept.
    """
    from pmmrec.report.tables import PlainTable, to_rich
    from pmmrec.settings import validate
    from pmmrec.tuning import require_optuna

    with errors_for_people():
        require_optuna()
        from pmmrec.tuning.search import Search, SearchPlan

        named_folders(weights or ())
        asked = {"recipe": recipe, "overrides": overrides or (), "space": space, "trials": trials, "on": on}
        where = {"start_from": start_from, "name": name, "runs": runs, "weights": weights or ()}
        how = {"jobs": jobs, "seed": seed, "timeout_min": timeout, "keep_checkpoints": keep_checkpoints}
        after = prune_after if prune else None
        plan = validate(SearchPlan, {**asked, **where, **how, "prune_after": after}, "arguments")
        found = Search(plan, typer.echo).run()
        show(to_rich(PlainTable(f"{found.folder}: the best trials, by validation", found.columns, found.rows)))
        for setting, share in found.importances.items():
            typer.echo(f"importance {share:6.1%}  {setting}")
        typer.echo(f"best settings: {found.best}")


@app.command()
def evaluate(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    out: Annotated[Path | None, Option("--out", help="Folder for metrics.json and ranks.parquet.")] = None,
    name: Annotated[str | None, Option(help="What the row is called; the run that made it otherwise.")] = None,
    seen: SeenOption = Seen.EXCLUDE,
    popularity: Popularity = None,
    max_unreadable: MaxUnreadable = 0.05,
    hub: HubFolder = HUB,
    cache: CacheFolder = None,
) -> None:
    """Rank the test targets of a domain, beside the floors; without any training this is zero-shot."""
    from pmmrec.report.verdict import outcome_tables
    from pmmrec.system import load

    with errors_for_people():
        system = load(checkpoint, hub=hub, cache=cache, warn=warn, popularity=popularity, max_unreadable=max_unreadable)
        row = name or str(system.checkpoint.provenance.get("run", checkpoint))
        outcome = system.evaluate(domain, name=row, seen=seen.value, out=out)
        show(*outcome_tables([outcome]))


@app.command()
def score(
    checkpoint: Checkpoint,
    domain: DomainFolder,
    out: Annotated[Path, Option("--out", help="Parquet file: user_id, rank, item_id, score.")],
    top_k: Annotated[int, Option("--top-k", min=1, help="Items for each user.")] = 10,
    seen: SeenOption = Seen.EXCLUDE,
    popularity: Popularity = None,
    max_unreadable: MaxUnreadable = 0.05,
    hub: HubFolder = HUB,
    cache: CacheFolder = None,
) -> None:
    """Recommend to every user of a domain what they may touch next."""
    from pmmrec.system import load

    with errors_for_people():
        system = load(checkpoint, hub=hub, cache=cache, warn=warn, popularity=popularity, max_unreadable=max_unreadable)
        num_users, num_rows = system.score(domain, top_k, out, seen=seen.value)
        typer.echo(f"{out}: {num_rows:,} rows for {num_users:,} users")


@app.command()
def compare(
    runs: Annotated[list[Path], Argument(help="Run folders, or folders that `evaluate --out` wrote.")],
) -> None:
    """One table out of several runs on the same domain."""
    from pmmrec.report.verdict import comparison

    with errors_for_people():
        show(*comparison(runs))


@import_app.command("table")
def import_table_command(
    items: Annotated[Path, Option(help="csv, tsv or parquet with item_id, text and any further columns.")],
    interactions: Annotated[Path, Option(help="csv, tsv or parquet with user_id, item_id and, if known, timestamp.")],
    name: Annotated[str, Option(help="Name of the platform; runs and reports use it.")],
    out: Annotated[Path, Option(help="Folder to make.")],
    images: Annotated[Path | None, Option(help="Folder of pictures named ITEM_ID.jpg, .png or .webp.")] = None,
    k_core: Annotated[str, Option(help="Keep users and items with at least so many interactions; none: all.")] = "5",
    image_side: Annotated[
        int | None, Option(help="Shortest side, in pixels, at which pictures are kept; 256 unless given.")
    ] = None,
) -> None:
    """Import a platform from two tables and a folder of pictures."""
    from pmmrec.data.importers.table import TableImport, import_table
    from pmmrec.progress import bars
    from pmmrec.report.domains import import_lines
    from pmmrec.settings import validate

    with errors_for_people():
        tree = {"items": items, "interactions": interactions, "images": images, "name": name, "out": out}
        sizes: dict[str, Any] = {"k_core": None if k_core == "none" else k_core}
        if image_side is not None:
            sizes["image_side"] = image_side
        task = validate(TableImport, {**tree, **sizes}, "arguments")
        with bars() as progress:
            domain = import_table(task, progress)
        show(*import_lines(domain))


@data_app.command("stats")
def stats_command(domains: Annotated[list[Path], Argument(help="Domain folders.")]) -> None:
    """Users, items, actions, lengths, modalities of domains, side by side."""
    from pmmrec.report.domains import statistics_table
    from pmmrec.report.tables import to_rich

    with errors_for_people():
        show(to_rich(statistics_table(domains)))


@data_app.command("verify")
def verify_domain_command(domain: DomainFolder) -> None:
    """Check a domain's files against their hashes, and what they hold against the rules of the format."""
    from pmmrec.data.verify import verify_domain

    with errors_for_people():
        say_problems(domain, verify_domain(domain))


@data_app.command("demo")
def demo_command(
    out: Annotated[Path, Option(help="Folder to make; holds one domain for each platform.")],
    seed: Annotated[int, Option(min=0, help="Another seed, another world.")] = 1,
) -> None:
    """Make the demo world: three small platforms with texts, pictures and users, and import them."""
    from pmmrec.report.domains import make_demo_world

    with errors_for_people():
        for line in make_demo_world(out, seed):
            typer.echo(line)


@recipe_app.command("list")
def recipe_list() -> None:
    """The shipped recipes, each with its first line."""
    from pmmrec.shipped import shipped_recipes

    for name, path in shipped_recipes().items():
        typer.echo(f"{name:<28} {_first_line(path)}")


@recipe_app.command("show")
def recipeshow(
    name: Annotated[str, Argument(metavar="RECIPE", help="A file or a shipped recipe.")],
    overrides: Annotated[list[str] | None, Argument(metavar="A.B=C...")] = None,
) -> None:
    """A recipe with everything it extends and every default written out."""
    with errors_for_people():
        typer.echo(_read(name, overrides).to_yaml())


@recipe_app.command("copy")
def recipe_copy(
    name: Annotated[str, Argument(metavar="RECIPE", help="A shipped recipe.")],
    to: Annotated[Path, Argument(help="File to write.")],
) -> None:
    """Copy a shipped recipe to change it; what it extends is written into it."""
    import yaml

    from pmmrec.atomic import whole_file
    from pmmrec.settings import read_extended
    from pmmrec.shipped import find_recipe

    with errors_for_people():
        if to.exists():
            raise RecipeError(f"{to}: exists; choose another file")
        if not to.parent.is_dir():
            raise MachineError(f"{to}: there is no folder {to.parent}; make it first")
        source = find_recipe(name)
        text = yaml.safe_dump(read_extended(source), sort_keys=False, allow_unicode=True)
        with whole_file(to) as draft:
            draft.write_text(f"{_first_comment(source)}{text}", encoding="utf-8")
        typer.echo(f"{to}: copied from {name}")


@recipe_app.command("validate")
def recipe_validate(
    name: Annotated[str, Argument(metavar="RECIPE", help="A file or a shipped recipe.")],
    overrides: Annotated[list[str] | None, Argument(metavar="A.B=C...")] = None,
) -> None:
    """Report every problem of a recipe at once, or say that there is none."""
    with errors_for_people():
        recipe = _read(name, overrides)
        typer.echo(f"{name}: valid, a recipe for `pmmrec {type(recipe).__name__.removesuffix('Recipe').lower()}`")


@zoo_app.command("list")
def zoo_list(hub: HubFolder = HUB) -> None:
    """The checkpoints in a folder hub."""
    from pmmrec.report.checkpoints import hub_table
    from pmmrec.report.tables import to_rich

    with errors_for_people():
        show(to_rich(hub_table(hub)))


@zoo_app.command("show")
def zooshow(checkpoint: Checkpoint, hub: HubFolder = HUB) -> None:
    """The parts of a checkpoint, their sizes, what they were trained on."""
    from pmmrec.report.checkpoints import checkpoint_table
    from pmmrec.report.tables import to_rich

    with errors_for_people():
        show(to_rich(checkpoint_table(checkpoint, hub)))


@zoo_app.command("verify")
def zoo_verify(checkpoint: Checkpoint, hub: HubFolder = HUB) -> None:
    """Check every file of a checkpoint against its index, and every tensor against the model."""
    from pmmrec.report.checkpoints import checkpoint_problems

    with errors_for_people():
        folder, problems = checkpoint_problems(checkpoint, hub)
        say_problems(folder, problems)


def _read(name: str, overrides: list[str] | None) -> Any:
    from pmmrec.recipe import read_recipe, recipe_class_for, recipe_tree
    from pmmrec.shipped import find_recipe

    path = find_recipe(name)
    return read_recipe(recipe_class_for(recipe_tree(path, overrides or ())), path, overrides or ())


def _first_comment(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    comment = []
    for line in lines:
        if not line.startswith("#"):
            break
        comment.append(line)
    return "".join(comment)


def _first_line(path: Path) -> str:
    return _first_comment(path).partition("\n")[0].lstrip("# ")
