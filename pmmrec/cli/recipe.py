"""Commands for recipes: list, show, copy, validate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument

from pmmrec.errors import MachineError, RecipeError
from pmmrec.terminal import errors_for_people, show

app = typer.Typer(help="Find, read, copy and check recipes.", no_args_is_help=True)


@app.command("list")
def recipe_list() -> None:
    """List the shipped recipes, each with its first sentence."""
    from pmmrec.shipped import shipped_recipes
    from pmmrec.tables import Sentence

    recipes = shipped_recipes()
    room = max(map(len, recipes)) + 1
    show(*(Sentence(f"{name:<{room}}{_first_sentence(path)}", indent=room) for name, path in recipes.items()))


@app.command("show")
def recipe_show(
    name: Annotated[str, Argument(metavar="RECIPE", help="A file or a shipped recipe.")],
    overrides: Annotated[list[str] | None, Argument(metavar="A.B=C...")] = None,
) -> None:
    """Print a recipe with all that it extends and every default."""
    with errors_for_people():
        typer.echo(_read(name, overrides).to_yaml())


@app.command("copy")
def recipe_copy(
    name: Annotated[str, Argument(metavar="RECIPE", help="A shipped recipe.")],
    to: Annotated[Path, Argument(metavar="FILE.yaml", help="File to write.")],
) -> None:
    """Copy a shipped recipe to edit it; what it extends is included."""
    import yaml

    from pmmrec.atomic import whole_file
    from pmmrec.homes import expanded
    from pmmrec.naming import suffix_of
    from pmmrec.settings import read_extended
    from pmmrec.shipped import find_recipe, shipped_recipe

    with errors_for_people():
        to = expanded(to)
        suffix_of(to, (".yaml", ".yml"), "argument")
        if to.exists():
            raise RecipeError(f"{to}: exists; choose another file")
        if not to.parent.is_dir():
            raise MachineError(f"{to}: folder {to.parent} does not exist; make it first")
        source = find_recipe(name)
        text = yaml.safe_dump(read_extended(source, shipped_recipe), sort_keys=False, allow_unicode=True)
        with whole_file(to, replace=False) as draft:
            draft.write_text(f"{_first_comment(source)}{text}", encoding="utf-8")
        typer.echo(f"{to}: copied from {name}")


@app.command("validate")
def recipe_validate(
    name: Annotated[str, Argument(metavar="RECIPE", help="A file or a shipped recipe.")],
    overrides: Annotated[list[str] | None, Argument(metavar="A.B=C...")] = None,
) -> None:
    """Report all problems of a recipe, or that it is valid."""
    with errors_for_people():
        recipe = _read(name, overrides)
        typer.echo(f"{name}: valid, a recipe for `pmmrec {type(recipe).__name__.removesuffix('Recipe').lower()}`")


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


def _first_sentence(path: Path) -> str:
    words = " ".join(line.lstrip("# ") for line in _first_comment(path).splitlines())
    return words.removeprefix("Paper: ").partition(". ")[0].removesuffix(".") + "."
