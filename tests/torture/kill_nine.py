"""Kill a pretraining at random moments, go on each time, and compare what comes out with a run that nobody killed.

`python tests/torture/kill_nine.py [--kills 50] [--seed 1]`. SIGKILL falls anywhere: while caches are filled, in steps,
in validation, while a state or the best weights are written, while the run is published. A run that comes to its end is
compared (best weights byte for byte, every loss and every metric exactly), and the next one is begun, until all kills
are spent. Two of three kills wait until the attempt trains, lest most fall into its preparations.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
import typer
from command_line import SMALL, sources, working_in

from pmmrec.cli import app
from pmmrec.data.demo_world import DemoWorldConfig, write_demo_world
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.zoo.files import hashes_of

TIMES = ("time_s", "seconds", "users_per_s", "peak_memory_bytes")  # not even two undisturbed runs share these
SETTINGS = (*SMALL, "train.log_every=1", "train.epochs=2", "train.state.every_steps=1")


def world(out: Path) -> None:
    """Two imported platforms of a few dozen users."""
    config = DemoWorldConfig(source_users=60, source_items=40, target_users=40, target_items=36, image_side=32)
    for name, folder in write_demo_world(out / "files", config).items():
        tables = {"items": folder / "items.csv", "interactions": folder / "interactions.csv"}
        import_table(TableImport(**tables, images=folder / "images", name=name, out=out / name, k_core=None))


def pretrain(name: str, cache: str) -> None:
    """The command of a user whose scheduler starts it again and again; ends this process."""
    said = os.open("said.log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)
    os.dup2(said, 1)
    os.dup2(said, 2)
    app(["pretrain", "pretrain/tiny", *SETTINGS, *sources(Path("world")), f"name={name}", f"cache={cache}", "--resume"])


@dataclass(frozen=True)
class Kill:
    """So long after the attempt began, or after it wrote its first event."""

    after_s: float
    events: Path | None

    @classmethod
    def at_random(cls, rng: random.Random, span_s: float, events: Path) -> Kill:
        return cls(rng.uniform(0, 0.5 * span_s), events if rng.random() < 2 / 3 else None)


def forked(work: Callable[[], None], kill: Kill | None = None) -> int:
    """Exit code of a copy of this process, which has imported everything; below 0: the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            work()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:  # noqa: BLE001 - a copy must never go on with what the original does next
            traceback.print_exc()
        os._exit(code)
    watched = kill.events if kill is not None else None
    before, until_s = (
        _written(watched),
        None if kill is None or watched is not None else time.monotonic() + kill.after_s,
    )
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if kill is not None and watched is not None and _written(watched) != before:
            watched, until_s = None, time.monotonic() + kill.after_s
        if until_s is not None and time.monotonic() > until_s:
            os.kill(child, signal.SIGKILL)
            until_s = None
        time.sleep(0.002)


def _written(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else 0


def result(name: str) -> dict[str, Any]:
    """All that must not depend on kills."""
    run = Path("runs") / name
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    events = [{key: value for key, value in json.loads(line).items() if key not in TIMES} for line in lines]
    weights = {
        f"{place}/{file}": digest
        for place, folder in (("checkpoint", run / "checkpoint"), ("hub", Path("hub") / name))
        for file, digest in hashes_of(folder).items()
        if file.endswith(".safetensors")
    }
    leftovers = sorted(path.name for path in run.iterdir() if path.name == "state" or ".incomplete" in path.name)
    return {"events": events, "weights": weights, "leftovers": leftovers}


def torture(kills: int, seed: int) -> list[str]:
    """Spend the kills; the differences that were found, in words."""
    rng, problems = random.Random(seed), []
    if forked(partial(world, Path("world"))):
        return ["the world could not be made"]
    started_s = time.monotonic()
    if forked(partial(pretrain, "whole", "c-whole")):
        return [f"the undisturbed run failed:\n{Path('said.log').read_text()}"]
    span_s = time.monotonic() - started_s
    whole = result("whole")
    typer.echo(f"undisturbed: {span_s:.1f} s, {len(whole['events'])} events, {len(whole['weights'])} files of weights")
    number, of_this, left = 1, 0, kills
    while left or of_this:
        name = f"run-{number}"
        kill = Kill.at_random(rng, span_s, Path("runs", name, "events.jsonl")) if left else None
        code = forked(partial(pretrain, name, f"c-{name}"), kill)
        if code == -signal.SIGKILL:
            left, of_this = left - 1, of_this + 1
            steps = sorted(path.name for path in Path("runs", name).glob("state/step-*") if path.suffix == "")
            typer.echo(f"kill {kills - left}/{kills}: {name}, newest state {steps[-1] if steps else 'none'}")
            continue
        if code:
            return [*problems, f"{name} ended with {code}:\n{Path('said.log').read_text()[-3000:]}"]
        found = result(name)
        differing = [what for what in whole if found[what] != whole[what]]
        problems += [f"{name}: {what} differ: {found[what]} instead of {whole[what]}" for what in differing]
        typer.echo(f"{name}: finished after {of_this} kills, {'DIFFERS' if differing else 'equal'}")
        number, of_this = number + 1, 0
    return problems


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as home, working_in(Path(home)):
        problems = torture(asked.kills, asked.seed)
    for problem in problems:
        typer.echo(problem, err=True)
    if problems:
        raise SystemExit(1)
    typer.echo(f"{asked.kills} kills, no difference")


if __name__ == "__main__":
    main()
