"""Commands for domains: import them, store splits and vectors in them, describe and check them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from pmmrec.cli import deriving, importing
from pmmrec.cli.options import HUB, AsJson, CacheFolder, HubFolder, MaxUnreadable, show_json, split_rule
from pmmrec.terminal import errors_for_people, named_folders, say_problems, show, warn

if TYPE_CHECKING:
    from pmmrec.data.importers.features import StoredFeature

Domains = Annotated[list[Path], Argument(metavar="DOMAIN...", help="Domain folders.")]


app = typer.Typer(help="Import the files of a platform as a domain; describe and check domains.", no_args_is_help=True)
app.add_typer(importing.app, name="import")
app.command("sample")(deriving.sample_command)
app.command("merge")(deriving.merge_command)
app.command("export")(deriving.export_command)


@app.command("kinds")
def kinds_command(as_json: AsJson = False) -> None:
    """List the public data sets that `data import KIND FOLDER` reads, by their files, and settings of a kind."""
    from pmmrec.report.domains import KindList

    with errors_for_people():
        found = KindList.all()
        show_json(found) if as_json else show(found.table())


@app.command("split")
def split_command(
    domain: Annotated[Path, Argument(metavar="DOMAIN", help="Domain folder.")],
    name: Annotated[str, Option(help="Recipes name it: data.split={type: given, name: NAME}.")],
    source: Annotated[
        Path | None, Option("--from", metavar="FILE", help="csv, tsv or parquet with user_id, item_id and split.")
    ] = None,
    by: Annotated[
        str | None,
        Option(metavar="RULE", help="leave_one_out, ratio, global_time, or with settings '{type: ratio, by: time}'."),
    ] = None,
) -> None:
    """Store which interactions of a domain are for training, validation and test, as a file or a rule says."""
    from pmmrec.data.importers.given_split import store_split, store_split_by
    from pmmrec.data.splits.given import GivenConfig
    from pmmrec.errors import RecipeError
    from pmmrec.settings import validate

    with errors_for_people():
        if (source is None) == (by is None):
            raise RecipeError("--from FILE, or --by RULE; give one of the two")
        config = validate(GivenConfig, {"name": name}, "arguments")
        if source is not None:
            stored = store_split(domain, source, config.name)
        else:
            stored = store_split_by(domain, split_rule(str(by), "--by"), config.name)
        for line in stored.lines():
            typer.echo(line)


@app.command("impressions")
def impressions_command(
    domain: Annotated[Path, Argument(metavar="DOMAIN", help="Domain folder.")],
    source: Annotated[
        Path,
        Option(
            "--from",
            metavar="FILE",
            help="csv, tsv or parquet: impression_id, user_id, item_id, clicked (1 or 0), split; known, if given.",
        ),
    ],
    name: Annotated[str, Option(help="Recipes name it: data.split={type: impressions, name: NAME}.")],
) -> None:
    """Store lists of items that users were shown, and which they clicked, for training, validation and the test."""
    from pmmrec.data.importers.impressions import store_impressions
    from pmmrec.data.splits.impressions import ImpressionsConfig
    from pmmrec.settings import validate

    with errors_for_people():
        config = validate(ImpressionsConfig, {"name": name}, "arguments")
        for line in store_impressions(domain, source, config.name).lines():
            typer.echo(line)


@app.command("features")
def features_command(
    domain: Annotated[Path, Argument(metavar="DOMAIN", help="Domain folder.")],
    source: Annotated[
        str,
        Option(
            "--from",
            metavar="SOURCE",
            help="A .npy or .parquet file of vectors, a checkpoint (folder, name in the hub, URL, hf://user/name), or "
            "a recipe, whose pretrained encoder is read.",
        ),
    ],
    name: Annotated[
        str,
        Option(
            help="Recipes name it: model.item_encoder={type: features, features: {NAME: LENGTH}}; "
            "{NAME: {vectors: T, length: F}} where an item has several vectors."
        ),
    ],
    vectors: Annotated[
        str | None,
        Option(
            help="Of a checkpoint: `fused` (the default) or a field such as `text`. Of a checkpoint or a recipe: "
            "`text.pooled`, what the backbone of its encoder gives, or `text.layers`, its states at every layer."
        ),
    ] = None,
    weights: Annotated[
        list[str] | None, Option(metavar="NAME=FOLDER", help="Of a recipe: where weights lie that it names.")
    ] = None,
    hub: HubFolder = HUB,
    cache: CacheFolder = None,
    max_unreadable: MaxUnreadable = 0.05,
) -> None:
    """Store a vector for each item in a domain, from a file or as a checkpoint computes it.

    .npy: floats (items, F) or (items, T, F), in the order of items.arrow;
    a row of NaN: the item has no vector.

    .parquet: columns item_id and vector, a list of F floats;
    items without a row have no vector.

    checkpoint: its item encoder computes them from texts and images.

    recipe: its pretrained encoder computes them, before any training.
    """
    from pmmrec.data.importers.features import store_file
    from pmmrec.errors import RecipeError
    from pmmrec.homes import expanded

    with errors_for_people():
        folders = _folders_for(source, weights or ())
        if Path(source).suffix.lower() in (".npy", ".parquet"):
            if vectors is not None:
                raise RecipeError(f"--vectors: has no effect, {source} holds the vectors; leave it out")
            stored = store_file(domain, expanded(Path(source)), name)
        else:
            rules: dict[str, Any] = {"cache": cache, "max_unreadable": max_unreadable, "warn": warn}
            stored, pace = _store_computed(domain, source, name, vectors or "fused", hub, folders, rules)
            typer.echo(pace)
        for line in stored.lines():
            typer.echo(line)


def _store_computed(
    domain: Path, source: str, name: str, vectors: str, hub: Path, folders: Mapping[str, Path], rules: Mapping[str, Any]
) -> tuple[StoredFeature, str]:
    """Store what a checkpoint, or the pretrained encoder of a recipe, computes; and a line that tells how fast it was.

    The time is that of reading the items and of computing their vectors; a checkpoint has been loaded before.
    """
    from time import monotonic

    from pmmrec.data.domain import Domain
    from pmmrec.data.importers.features import check_name, store_vectors
    from pmmrec.pretrained import is_recipe, pretrained_features
    from pmmrec.system import load

    opened = Domain.open(domain)
    check_name(opened, name)
    if is_recipe(source):
        started_s = monotonic()
        found = pretrained_features(source, opened, vectors, weights=folders, **rules)
    else:
        system = load(source, hub=hub, **rules)
        started_s = monotonic()
        found = system.features(opened, vectors)
    took_s = monotonic() - started_s
    pace = f"{opened.num_items / took_s:,.0f} items/s, read and computed in {took_s:,.1f} s"
    return store_vectors(opened, found, name, source), pace


def _folders_for(source: str, weights: Sequence[str]) -> dict[str, Path]:
    """The folders of pretrained weights that are named for a recipe. RecipeError where the source is none."""
    if not weights:
        return {}
    from pmmrec.errors import RecipeError
    from pmmrec.pretrained import is_recipe

    if not is_recipe(source):
        raise RecipeError(f"--weights: has no effect, {source} is not a recipe; leave it out")
    return named_folders(weights)


@app.command("codes")
def codes_command(
    domains: Domains,
    feature: Annotated[str, Option(help="The stored feature whose vectors are coded.")],
    name: Annotated[
        str, Option("--out", metavar="NAME", help="Recipes name it: model.item_encoder={type: codes, feature: NAME}.")
    ],
    parts: Annotated[int, Option(min=1, help="Codes of each item; they divide the length of the vectors.")] = 32,
    users: Annotated[
        str | None,
        Option(metavar="SETTINGS", help="Of data.users, such as '{sample: 1000, seed: 1}': fit to their items alone."),
    ] = None,
    iterations: Annotated[
        int | None, Option(min=1, help="Of the fit; default: 50 for the rotation, 25 for centroids. Fewer are faster.")
    ] = None,
) -> None:
    """Store codes of the vectors of a stored feature: product quantisation, fitted to the training items.

    Items are those of the leave-one-out split, of all domains together: a code then means the same in each, as one
    pretraining on several needs it. 256 training items or more are needed, and as many as vectors are long.
    """
    from pmmrec.data.domain import Domain
    from pmmrec.data.importers.codes import store_codes
    from pmmrec.data.splits import split_of
    from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
    from pmmrec.data.user_sample import UserSampleConfig
    from pmmrec.settings import parse_yaml, validate

    with errors_for_people():
        some = None if users is None else validate(UserSampleConfig, parse_yaml(users, "--users"), "--users")
        splits = [split_of(LeaveOneOutConfig(), Domain.open(domain), some) for domain in domains]
        for stored in store_codes(splits, feature, name, parts, iterations, warn=warn):
            for line in stored.lines():
                typer.echo(line)


@app.command("stats")
def stats_command(
    domains: Domains,
    plot: Annotated[
        Path | None,
        Option(metavar="FILE.png", help="Also draw popularity of items, length of histories, interactions by time."),
    ] = None,
    tokenizer: Annotated[
        Path | None, Option(metavar="FOLDER", help="Folder of a text encoder, whose tokens are counted.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the figures of domains that papers print, side by side: sizes, lengths, sparsity, texts and images."""
    from pmmrec.report.domains import Statistics

    with errors_for_people():
        found = Statistics.of(domains, tokenizer)
        if plot is not None:
            from pmmrec.report.domain_plots import plot_domains  # which loads torch

            plot_domains(domains, plot)
        show_json(found) if as_json else show(found.table())


@app.command("check")
def check_command(
    domains: Domains,
    split: Annotated[
        str, Option(metavar="RULE", help="leave_one_out, '{type: ratio}', '{type: given, name: NAME}', ...")
    ] = "leave_one_out",
    against: Annotated[
        list[Path] | None, Option(metavar="SOURCE", help="Domains that a model is transferred from; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Report leakage: what training knows of targets, equal users and items, and what a source shares with a domain.

    No figure is an error: whether one matters depends on the protocol. `pmmrec data verify` checks files.
    """
    from pmmrec.report.leakage import LeakageReport

    with errors_for_people():
        found = LeakageReport.of(domains, split_rule(split, "--split"), against or [])
        show_json(found) if as_json else show(*found.tables())


@app.command("verify")
def verify_domain_command(domains: Domains) -> None:
    """Check the files of domains against their hashes and against the rules of the format."""
    from pmmrec.data.verify import verify_domain

    with errors_for_people():
        say_problems({domain: verify_domain(domain) for domain in domains})


@app.command("demo")
def demo_command(
    out: Annotated[Path, Option(help="Folder to make; it holds one domain for each platform.")],
    seed: Annotated[int, Option(min=0, help="Seed of the world.")] = 1,
) -> None:
    """Make and import the demo world: three small platforms with texts, pictures and users."""
    from pmmrec.report.domains import make_demo_world

    with errors_for_people():
        for line in make_demo_world(out, seed):
            typer.echo(line)
