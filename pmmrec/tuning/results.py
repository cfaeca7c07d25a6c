"""Write the results of a search: a line per trial, trials.csv, best.yaml and the final table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pmmrec.atomic import whole_file
from pmmrec.formulas import CsvWriter
from pmmrec.settings import Tree
from pmmrec.tuning.record import Ending, best_first
from pmmrec.tuning.space import keys_of

BEST_FILE = "best.yaml"
TRIALS_FILE = "trials.csv"
NUM_SHOWN = 10

Row = list[str | int | float | None]


def folder_name(number: int) -> str:
    """The name of a trial's run folder."""
    return f"{number:04d}"


def trial_line(ending: Ending, endings: Sequence[Ending], metric: str, short: Mapping[str, str]) -> str:
    """One line about a trial that ended: its value, the best so far, epochs, seconds and settings."""
    best = best_first(endings)
    shown = f"{metric} {ending.value:.2%}" if ending.value is not None else ending.state
    early = " (ended early)" if ending.state == "pruned" else ""
    so_far = f"best {best[0].value:.2%} ({folder_name(best[0].number)})" if best else "none so far"
    epochs = "" if ending.num_epochs is None else f"  {ending.num_epochs} epochs"
    settings = "  ".join(f"{short[path]}={_short_value(value)}" for path, value in ending.values.items())
    own = "  the recipe's own values" if ending.is_own else ""
    why = f"  {ending.message}" if ending.message else ""
    return (
        f"trial {folder_name(ending.number)}  {shown}{early}  {so_far}{epochs}  {ending.seconds or 0:.0f} s  "
        f"{settings}{own}{why}"
    )


def best_rows(endings: Sequence[Ending], short: Mapping[str, str], metric: str) -> tuple[list[str], list[Row]]:
    """Columns and rows of the best trials, and of the recipe's own values if they are not among them."""
    ranked = best_first(endings)
    shown = [*ranked[:NUM_SHOWN], *(ending for ending in ranked[NUM_SHOWN:] if ending.is_own)]
    rows: list[Row] = [
        [
            folder_name(ending.number) + (" (own values)" if ending.is_own else ""),
            f"{ending.value:.2%}",
            ending.best_epoch,
            *(_short_value(ending.values.get(path)) for path in short),
        ]
        for ending in shown
    ]
    return ["trial", metric, "best epoch", *short.values()], rows


def write_trials(folder: Path, endings: Sequence[Ending], paths: Sequence[str]) -> None:
    """Write trials.csv: every trial that ended, with full paths of its settings.

    It is for people to open, so a text that a spreadsheet would take for a formula gets a `'` in front.
    """
    header = ["trial", "state", "value", "best_epoch", "epochs", "seconds", *paths, "message"]
    with whole_file(folder / TRIALS_FILE) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        lines = CsvWriter(file, escapes=True)
        lines.write([[name] for name in header])
        for ending in endings:
            about = (folder_name(ending.number), ending.state, ending.value, ending.best_epoch, ending.num_epochs)
            values = [_plain(ending.values.get(path)) for path in paths]
            lines.write([[value] for value in (*about, ending.seconds, *values, ending.message)])


def write_recipe(path: Path, tree: Tree, comment: Sequence[str]) -> None:
    """Write a self-contained recipe: what it extends is written out."""
    first = "".join(f"# {line}\n" for line in comment)
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    with whole_file(path) as draft:
        draft.write_text(first + text, encoding="utf-8")


def short_names(paths: Sequence[str]) -> dict[str, str]:
    """The shortest suffix of each path that is unique among them, such as `learning_rate`."""
    keys = {path: keys_of(path) for path in paths}
    short: dict[str, str] = {}
    for path, parts in keys.items():
        size = next(
            size
            for size in range(1, len(parts) + 1)
            if sum(other[-size:] == parts[-size:] for other in keys.values()) == 1 or size == len(parts)
        )
        short[path] = ".".join(parts[-size:])
    return short


def _short_value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(_plain(value))


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict | bool) or value is None else value
