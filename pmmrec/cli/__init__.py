"""The command line. Each file holds a group of commands, and heavy modules are imported inside a command only."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from pmmrec import __version__
from pmmrec.cli import bench, data, encoders, ranking, recipe, serving, training, zoo
from pmmrec.startup import collect_rarely
from pmmrec.terminal import show_any_letter, show_renamed_settings

app = typer.Typer(
    help="Recommenders that transfer: import platforms, pretrain on some, recommend on an unseen one.",
    epilog="The four jobs: data import, pretrain, finetune, evaluate or score. Start with: pmmrec recipe list",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _show_version(asked: bool) -> None:
    """Print the versions to include in a bug report; the libraries are not loaded."""
    if not asked:
        return
    found = ", ".join(f"{package} {version(package)}" for package in ("torch", "transformers", "accelerate"))
    typer.echo(f"pmmrec {__version__} (Python {sys.version.split()[0]}, {found})")
    raise typer.Exit


@app.callback()
def _begin(
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    collect_rarely()
    show_any_letter()
    show_renamed_settings()


app.add_typer(training.app)
app.add_typer(ranking.app)
app.add_typer(bench.app)
app.add_typer(encoders.app)
app.add_typer(serving.app)
app.add_typer(data.app, name="data")
app.add_typer(recipe.app, name="recipe")
app.add_typer(zoo.app, name="zoo")
