"""Print which checks each registered part passes; exit with 1 if one fails.

Modules that are named as arguments are imported first: they may hold parts, or twins of parts.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from pmmrec.family import Family
from pmmrec.tables import console_for
from pmmrec.testing.checks import Check, checks_of
from pmmrec.testing.conformance import configs_of, title
from pmmrec.testing.subjects import FAMILIES, Subject
from pmmrec.testing.twins import NO_TWIN

PASSED, FAILED = Text("ok", "green"), Text("FAILED", "red")
INAPPLICABLE, WITHOUT = Text("n/a", "dim"), Text(NO_TWIN, "yellow")


def main() -> int:
    """The exit code."""
    torch.set_num_threads(1)
    for module in sys.argv[1:]:
        importlib.import_module(module)
    console, failures = console_for(os.environ), []
    for family in (one for one in FAMILIES if list(one)):
        table, failed = table_of(family)
        console.print(table)
        failures += failed
    for failure in failures:
        console.print(failure)
    console.print(f"{len(failures)} checks failed" if failures else "every part passes every check that applies to it")
    return 1 if failures else 0


def table_of(family: Family[Any]) -> tuple[Table, list[str]]:
    """The parts of a family and their checks, and a line for each check that failed."""
    checks, failures = list(checks_of(family)), []
    table = Table(title=family.name if family.name.endswith("s") else f"{family.name}s", title_justify="left")
    table.add_column("", overflow="fold")
    for check in checks:
        table.add_column(check.name)
    for config in configs_of(family):
        cells = []
        for check in checks:
            cell, problem = _result(check, family, config)
            cells.append(cell)
            failures += [f"{family.name} {title(config)}: {check.name}: {problem}"] if problem else []
        table.add_row(title(config), *cells)
    return table, failures


def _result(check: Check, family: Family[Any], config: Any) -> tuple[Text, str]:
    """A cell of the table, and what is wrong if the check failed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            reason = check.run(Subject(family, config, Path(folder)))
        except Exception as error:  # noqa: BLE001 - whatever a part raises is a failure of the part
            return FAILED, f"{type(error).__name__}: {error}"
    return {None: PASSED, NO_TWIN: WITHOUT}.get(reason, INAPPLICABLE), ""


if __name__ == "__main__":
    sys.exit(main())
