"""Compare the figures of short runs with those of another commit, bit for bit, on one CPU process.

Runs every recipe of `RUNS` for a few steps on the demo world, once with the code of BASE and once with this checkout,
and compares the losses of all steps and all metrics. Then this checkout opens what BASE wrote: a checkpoint, and the
state of a run that was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[2]
SOURCES = "data.sources=[demo/bazaar,demo/gallery]"
PRETRAIN = ("data.mixing.epoch_users=640", "train.epochs=2", "train.log_every=1")  # 20 steps
FINETUNE = (*PRETRAIN, "machine.device=cpu")
ON = ("--on", "demo/boutique")
RUNS: dict[str, tuple[str, ...]] = {
    "tiny": ("pretrain", "pretrain/tiny", *PRETRAIN),
    "small": ("pretrain", "pretrain/small", SOURCES, "train.batch_users=32", *PRETRAIN),
    "small_target": ("finetune", "finetune/small", "--from", "small", *ON, "name=small_target", *FINETUNE),
    "frozen": ("finetune", "finetune/frozen", "--from", "small", *ON, "name=frozen", *FINETUNE),
    "adapter": ("finetune", "finetune/adapter", "--from", "small", *ON, "name=adapter", *FINETUNE),
    "sasrec": ("finetune", "zoo/ids/small/sasrec_in_batch", "--from", "none", *ON, "name=sasrec", *FINETUNE),
}
NO_FIGURES = ("time_s", "seconds", "users_per_s", "peak_memory_bytes")


def main() -> None:
    """Print a table of what is equal; exit 1 where something is not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("base", metavar="BASE", help="a commit, such as v0.1.0")
    parser.add_argument("--home", type=Path, help="keep the runs here, and use what BASE left there before")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = (asked.home or Path(scratch)).resolve()
        old, new = home / "base", home / "now"
        tree = checkout(asked.base, home)
        if not (old / "whole").exists():
            shutil.rmtree(old, ignore_errors=True)
            make_runs(tree, old)
            stop_run(tree, old)
            (old / "whole").touch()
        shutil.rmtree(new, ignore_errors=True)
        make_runs(HERE, new)
        lines = [compare(name, old / "runs" / name, new / "runs" / name) for name in RUNS]
        lines += open_old(old, new)
    print("\n".join(f"{'equal' if is_equal else 'DIFFERS':<8}{words}" for is_equal, words in lines))
    sys.exit(0 if all(is_equal for is_equal, _ in lines) else 1)


def checkout(base: str, home: Path) -> Path:
    """The files of a commit, in a folder of their own."""
    commit = subprocess.check_output(["git", "rev-parse", base], cwd=HERE, text=True).strip()
    tree = home / f"tree-{commit[:12]}"
    if not tree.exists():
        tree.mkdir(parents=True)
        archive = subprocess.Popen(["git", "archive", commit], cwd=HERE, stdout=subprocess.PIPE)
        subprocess.run(["tar", "-x", "-C", tree], stdin=archive.stdout, check=True)
        if archive.wait():
            raise SystemExit(f"git archive {commit} failed")
    return tree


def environment(tree: Path, home: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(home / "cache")}


def pmmrec(tree: Path, home: Path, *words: str) -> None:
    """Run a verb with the code of `tree` in the folder `home`."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "log.txt"
    with log.open("a") as out:
        print("$ pmmrec", *words, file=out, flush=True)
        command = [sys.executable, "-m", "pmmrec", *words]
        done = subprocess.run(command, cwd=home, env=environment(tree, home), stdout=out, stderr=out, check=False)
    if done.returncode:
        raise SystemExit(f"pmmrec {' '.join(words)} ended with {done.returncode}; see {log}")


def make_runs(tree: Path, home: Path) -> None:
    """Make the demo world and all runs."""
    pmmrec(tree, home, "data", "demo", "--out", "demo")
    for words in RUNS.values():
        pmmrec(tree, home, *words)


def stop_run(tree: Path, home: Path) -> None:
    """Begin the run `tiny` once more, and stop it in the middle."""
    words = [*RUNS["tiny"], "name=stopped", "train.state.every_minutes=0.01"]
    command = [sys.executable, "-m", "pmmrec", *words]
    begun = subprocess.Popen(command, cwd=home, env=environment(tree, home), stdout=subprocess.DEVNULL)
    events = home / "runs/stopped/events.jsonl"
    while begun.poll() is None and not (events.exists() and '"event": "train"' in events.read_text()):
        time.sleep(0.05)
    begun.send_signal(signal.SIGTERM)
    if begun.wait() != 75:
        raise SystemExit(f"the run that was to be stopped ended with {begun.returncode}")


def open_old(old: Path, new: Path) -> list[tuple[bool, str]]:
    """What this checkout makes of a checkpoint, a recipe and a run state that BASE wrote."""
    shutil.copytree(old / "runs/stopped", new / "runs/stopped")
    pmmrec(HERE, new, *RUNS["tiny"], "name=stopped", "train.state.every_minutes=0.01", "--resume")
    words = list(RUNS["small_target"])
    words[words.index("small")] = str(old / "hub/small")
    words[words.index("name=small_target")] = "name=from_base"
    pmmrec(HERE, new, *words)
    found = [
        ("a stopped run of BASE, gone on with", "tiny", "stopped"),
        ("fine-tuning from a checkpoint of BASE", "small_target", "from_base"),
    ]
    return [compare(told, old / "runs" / theirs, new / "runs" / ours) for told, theirs, ours in found]


def compare(name: str, old: Path, new: Path) -> tuple[bool, str]:
    """Whether the figures of two runs are equal, and a line that says how many were compared."""
    theirs, ours = figures(old), figures(new)
    common = theirs.keys() & ours.keys()
    wrong = sorted(key for key in common if theirs[key] != ours[key])
    missing = sorted(theirs.keys() ^ ours.keys())
    words = f"{name}: {len(common)} figures"
    if missing:
        words += f"; in one alone: {len(missing)}, such as {missing[0]}"
    if wrong:
        first = wrong[0]
        words += f"; {len(wrong)} differ, the first: {first}: {theirs[first]!r} -> {ours[first]!r}"
    return not wrong and not missing, words


def figures(run: Path) -> dict[str, Any]:
    """All losses and metrics of a run by name."""
    found: dict[str, Any] = {}
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] in ("train", "validation", "gradient_norm", "test"):
            found |= flat(event, f"{event['event']}/{event['step']}")
    return found | flat(json.loads((run / "metrics.json").read_text()).get("domains", []), "metrics")


def flat(tree: Any, path: str) -> dict[str, Any]:
    """Numbers below `tree` by their path."""
    if isinstance(tree, Mapping):
        entries = [(key, entry) for key, entry in tree.items() if key not in NO_FIGURES]
    elif isinstance(tree, list):
        entries = list(enumerate(tree))
    else:
        return {path: tree} if isinstance(tree, int | float) else {}
    # A key that was renamed is compared under its new name.
    renamed = {"floors": "baselines"}
    return {k: v for key, entry in entries for k, v in flat(entry, f"{path}.{renamed.get(key, key)}").items()}


if __name__ == "__main__":
    main()
