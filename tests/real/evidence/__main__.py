"""Measure the plan `zoo/evidence.yaml` on real data, and write the page of all results (`make evidence`).

Existing results are kept, so an interrupted measurement resumes. If the data is missing, the page is written from the
existing results. Intermediate files are in runs/evidence.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from pmmrec.errors import PMMRecError
from pmmrec.processes import signals_as_interrupts
from tests.real.evidence.cells import Results
from tests.real.evidence.layout import Layout
from tests.real.evidence.page import Page
from tests.real.evidence.read_plan import read_plan
from tests.real.evidence.runner import Runner, Wanted


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the data; may be missing")
    parser.add_argument("--plan", type=Path, default=Path("zoo/evidence.yaml"))
    parser.add_argument("--results", type=Path, default=Path("zoo/results"))
    parser.add_argument("--page", type=Path, default=Path("zoo/RESULTS.md"))
    parser.add_argument("--home", type=Path, default=Path("runs/evidence"), help="folder of all runs")
    parser.add_argument("--cache", type=Path, help="folder that caches tokens, pixels and states")
    parser.add_argument("--cells", default="", help="names or globs of cells to measure again, separated by spaces")
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel runs, one thread each")
    parser.add_argument("--stale", action="store_true", help="measure stale cells again")
    parser.add_argument("--fresh", action="store_true", help="repeat runs that are complete, too")
    parser.add_argument("--page-only", action="store_true", help="write the page without measuring")
    return parser.parse_args()


def main(asked: argparse.Namespace) -> int:
    plan = read_plan(asked.plan)
    results, layout = Results(asked.results), Layout(asked.home, plan, asked.data, asked.cache)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def show() -> dict[str, list[str]]:
        stale = runner.stale()
        Page(plan, asked.plan.parent, results, stale).write(asked.page)
        return stale

    runner = Runner(plan, results, layout, environment, say, show)
    failures: dict[str, str] = {}
    wanted = Wanted(tuple(asked.cells.split()), asked.stale, asked.fresh)
    try:
        if not asked.page_only:
            failures = runner.measure(wanted, asked.jobs)
    finally:
        for cell_id, changes in show().items():
            say(f"stale: {cell_id} ({', '.join(changes[:5])}); STALE=1 measures it again")
        for path in results.unplanned(plan):
            say(f"not in the plan: {path}; remove it")
        say(f"wrote {asked.page}")
    for what, why in failures.items():
        say(f"FAILED {what}: {why}")
    return 1 if failures else 0


def say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    try:
        with signals_as_interrupts():
            sys.exit(main(arguments()))
    except PMMRecError as error:
        say(f"error: {error}")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        say("stopped; run the same command again to resume")
        sys.exit(130)
