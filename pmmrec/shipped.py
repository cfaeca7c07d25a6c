"""Find the recipe, program and launch files that come with the package: in a checkout, or inside the wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pmmrec.errors import RecipeError
from pmmrec.homes import expanded
from pmmrec.renamed import warn_of_rename

Room = Literal["pretrain", "finetune", "zoo", "launch"]
ROOMS: tuple[Room, ...] = ("pretrain", "finetune", "zoo", "launch")

PLANS = "zoo/evidence*.yaml"  # of measurements: they name recipes, they are none
CLUSTER_JOB = "kubernetes.yaml"  # among the launch files: read by kubectl, not by accelerate
RECIPES = ("pretrain/*.yaml", "finetune/*.yaml", "zoo/*.yaml", "zoo/*/*.yaml", "zoo/*/small/*.yaml")

# Recipes of earlier versions -> of today. Each was a model in `zoo` and the same model with its training in `finetune`.
_SYSTEMS = {
    "bert4rec": "zoo/ids/small/bert4rec",
    "dssm": "zoo/ids/small/dssm",
    "dssm_variant": "zoo/ids/small/dssm_variant_each",
    "gru4rec": "zoo/ids/small/gru4rec",
    "lightgcn": "zoo/ids/lightgcn",
    "morec_ts": "zoo/vectors/ts",
    "sasrec": "zoo/ids/small/sasrec_in_batch",
    "sasrec_attention": "zoo/ids/small/sasrec_attention",
}
RENAMED_RECIPES = {f"{room}/{name}": today for room in ("zoo", "finetune") for name, today in _SYSTEMS.items()}

_PACKAGE = Path(__file__).resolve().parent


def shipped_root() -> Path:
    """The folder that holds `pretrain`, `finetune`, `zoo` and `launch`."""
    in_wheel = _PACKAGE / "_shipped"
    return in_wheel if in_wheel.is_dir() else _PACKAGE.parent


def shipped_file(name: str) -> Path:
    """A shipped file by its name, such as `pretrain/pmmrec.yaml`. RecipeError when there is none."""
    root = shipped_root()
    path = (root / name).resolve()
    rooms = [(root / room).resolve() for room in ROOMS]
    if not path.is_file() or not any(room in path.parents for room in rooms):
        raise RecipeError(f"{name}: no such file, here or among the shipped ones; see `pmmrec recipe list`")
    return path


def shipped_recipes() -> dict[str, Path]:
    """Every shipped recipe by name: `finetune/full`, `zoo/ids/small/gru4rec` -> path."""
    root = shipped_root()
    plans = set(root.glob(PLANS))
    found = [path for pattern in RECIPES for path in sorted(root.glob(pattern)) if path not in plans]
    return {path.relative_to(root).with_suffix("").as_posix(): path for path in found}


def shipped_launch_files() -> dict[str, Path]:
    """Every shipped configuration of accelerate by name: `zero2` -> path."""
    found = sorted((shipped_root() / "launch").glob("*.yaml"))
    return {path.stem: path for path in found if path.name != CLUSTER_JOB}


def find_recipe(name: str) -> Path:
    """A recipe file: a path of the user's, or the name of a shipped one, with or without `.yaml`.

    RecipeError with the nearest shipped name when there is neither.
    """
    path = expanded(Path(name))
    return path if path.is_file() else shipped_recipe(name)


def shipped_recipe(name: str) -> Path:
    """A shipped recipe by its name, with or without `.yaml`; by its earlier name with a warning that names today's.

    RecipeError with the nearest name when there is none.
    """
    import difflib

    known = shipped_recipes()
    key = name.removesuffix(".yaml")
    earlier = key.removeprefix("../")  # as a copy of a recipe of `finetune` extends one of `zoo`
    if earlier in RENAMED_RECIPES:
        warn_of_rename(f"recipe {earlier}", RENAMED_RECIPES[earlier])
        return known[RENAMED_RECIPES[earlier]]
    if key in known:
        return known[key]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"shipped recipes: {', '.join(known)}"
    raise RecipeError(f"{name}: no such recipe file; {hint}")
