"""The verbs of the command line, one file for each room of them. Nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import typer

from pmmrec.cli import data, ranking, recipe, serving, training, zoo
from pmmrec.terminal import show_any_letter

app = typer.Typer(
    help="Recommenders that transfer: import platforms, pretrain on some, recommend on one never seen.",
    epilog="The four jobs: data import, pretrain, finetune, evaluate or score. Start with: pmmrec recipe list",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.callback()(show_any_letter)
app.add_typer(training.app)
app.add_typer(ranking.app)
app.add_typer(serving.app)
app.add_typer(data.app, name="data")
app.add_typer(recipe.app, name="recipe")
app.add_typer(zoo.app, name="zoo")
