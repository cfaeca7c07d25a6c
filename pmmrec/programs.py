"""Start a shipped program from Python, as `pmmrec pretrain` and `pmmrec finetune` do."""

from __future__ import annotations

import runpy
from pathlib import Path

from pmmrec.errors import RecipeError
from pmmrec.shipped import shipped_file


def fit(
    recipe: str | Path,
    *overrides: str,
    on: str | Path | None = None,
    start_from: str | Path | None = None,
) -> None:
    """Pretrain (without `on`) or fine-tune on one domain; the run folder holds what came out.

    Args:
        recipe: A file, or the name of a shipped recipe.
        overrides: Settings that win, such as `"train.epochs=3"`.
        on: Domain folder to fine-tune on.
        start_from: Checkpoint to fine-tune from; `"none"` trains from scratch.
    """
    if (on is None) != (start_from is None):
        raise RecipeError("fit: on= and start_from= go together; give both to fine-tune, neither to pretrain")
    room = "pretrain" if on is None else "finetune"
    program = runpy.run_path(str(shipped_file(f"{room}/run.py")), run_name=f"pmmrec_{room}_run")
    if on is None:
        program["main"](str(recipe), list(overrides))
    else:
        program["main"](str(recipe), str(start_from), Path(on), list(overrides))
