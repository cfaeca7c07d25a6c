"""Import damaged files of every kind for a while, in processes of their own, and tell how it ended.

`make fuzz` runs it: `SECONDS` is how long, `SEED` where the draws begin. A finding is named with the line that shows it
again. Exit code 1 if there was any.
"""
# ruff: noqa: T201  its output is what it is for

from __future__ import annotations

import argparse
import collections
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
DEADLINE = 600  # seconds for the variants of one kind in a round, on a machine that others use too
MEMORY = Path("/dev/shm")  # noqa: S108  thousands of folders, each flushed to the disk, take long elsewhere
Counts = collections.Counter[str]


def run_round(names: Sequence[str], seed: int, examples: int) -> None:
    """Import so many damaged variants of each kind; prints a line of JSON before each, and its endings after it."""
    sys.path.insert(0, str(SUPPORT))
    from fuzzed import subjects

    with tempfile.TemporaryDirectory(dir=_scratch()) as home:
        found = subjects()
        for name in names:
            print(json.dumps({"begun": name}), flush=True)
            counts, slowest = run_kind(found[name], seed, examples, home)
            print(json.dumps({"name": name, "slowest": slowest, "counts": counts}), flush=True)


def _scratch() -> Path | None:
    return MEMORY if MEMORY.is_dir() and "TMPDIR" not in os.environ else None


def run_kind(subject: Any, seed: int, examples: int, home: str) -> tuple[Counts, float]:
    """How many damaged variants of one kind were imported and refused, and the seconds of the slowest."""
    from fuzzed import attempt, damaged
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis import seed as seeded
    from hypothesis import strategies as st

    counts: Counts = collections.Counter()
    seconds = [0.0]

    @seeded(seed)
    @settings(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def imports(data: st.DataObject) -> None:
        files, begun = data.draw(damaged(subject.files)), time.monotonic()
        with tempfile.TemporaryDirectory(dir=home) as room:
            ending = attempt(subject, files, Path(room))
        seconds.append(time.monotonic() - begun)
        counts["imported" if ending == "imported" else "refused"] += 1

    imports()
    return counts, max(seconds)


def _followed(words: Sequence[str]) -> tuple[str, str, str]:
    """How a round ended, what it printed and its errors. It is ended where no line comes for `DEADLINE` seconds."""
    lines, is_late = list[str](), threading.Event()
    with (
        tempfile.TemporaryDirectory(dir=_scratch()) as home,  # also of what a process that is ended leaves
        tempfile.TemporaryFile("w+", errors="replace") as errors,
    ):
        streams = {"stdout": subprocess.PIPE, "stderr": errors, "text": True, "errors": "replace"}
        with subprocess.Popen(words, env={**os.environ, "TMPDIR": home}, **streams) as process:

            def end() -> None:
                is_late.set()
                process.kill()

            def watch() -> threading.Timer:
                timer = threading.Timer(DEADLINE, end)
                timer.start()
                return timer

            timer = watch()
            for line in process.stdout or ():
                timer.cancel()
                lines.append(line)
                timer = watch()
            process.wait()
            timer.cancel()
        errors.seek(0)
        ended = f"no line in {DEADLINE} s" if is_late.is_set() else str(process.returncode)
        return ended, "".join(lines), errors.read()


class Tally:
    """What all rounds found."""

    def __init__(self, names: Sequence[str], examples: int) -> None:
        self.names, self.examples = list(names), examples
        self.counts: dict[str, Counts] = {name: collections.Counter() for name in names}
        self.findings: list[str] = []
        self.slowest = 0.0

    def run(self, names: Sequence[str], seed: int) -> None:
        """One round; a kind that fails, crashes or hangs is told, and the next ones go on in another process."""
        while names:
            words = [sys.executable, __file__, "--here", "--seed", str(seed), "--examples", str(self.examples)]
            ended, out, error = _followed([*words, *names])
            lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
            for line in lines:
                if "counts" in line:
                    self.counts[line["name"]].update(line["counts"])
                    self.slowest = max(self.slowest, line["slowest"])
            if ended == "0":
                return
            last = next((line["begun"] for line in reversed(lines) if "begun" in line), names[0])
            self.findings.append(last)
            tail = "\n    ".join(line[:300] for line in error.splitlines()[-14:])
            print(f"FOUND ({ended}): {' '.join(map(repr, [*words, last]))}\n    {tail}", flush=True)
            names = names[names.index(last) + 1 :]

    def say(self, seconds: float) -> None:
        for name, counts in self.counts.items():
            print(f"{name:34} {counts['imported']:6} imported {counts['refused']:6} refused")
        whole = sum(self.counts.values(), collections.Counter[str]())
        ended = f"{whole['imported']} imported, {whole['refused']} refused, {len(self.findings)} findings"
        print(f"{whole.total()} inputs: {ended}; slowest {self.slowest:.1f} s, {seconds:.0f} s in all")


def main() -> int:
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--seconds", type=int, default=600)
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--examples", type=int, default=8, help="Of each kind in a round.")
    words.add_argument("--here", action="store_true", help="Run one round in this process, with its traceback.")
    words.add_argument("names", nargs="*", help="Kinds, such as 'table: csv'; default: all.")
    given = words.parse_args()
    if given.here:
        run_round(given.names, given.seed, given.examples)
        return 0
    sys.path.insert(0, str(SUPPORT))
    from fuzzed import subjects

    tally = Tally(given.names or list(subjects()), given.examples)
    begun, seed = time.monotonic(), given.seed
    while time.monotonic() - begun < given.seconds:
        tally.run(tally.names, seed)
        seed += 1
    tally.say(time.monotonic() - begun)
    return 1 if tally.findings else 0


if __name__ == "__main__":
    sys.exit(main())
