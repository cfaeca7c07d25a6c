"""The whole way on real data: import, pretrain on two platforms, publish, and transfer to a third.

Takes the folder of the data; says so and ends well where it is missing. What it makes lies below runs/real.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

DATA = Path(sys.argv[1] if len(sys.argv) > 1 else "../shared/data").resolve()
HOME = Path("runs/real")
DOMAINS = {
    "hm_ladies_source": DATA / "hm_images",
    "hm_street_target": DATA / "hm_images",
    "ml_latest_small": DATA / "ml_latest_small" / "images",
}
TARGET = "domains/hm_street_target"


def main() -> None:
    if not DATA.is_dir():
        print(f"skipped: no real data in {DATA}")
        return
    HOME.mkdir(parents=True, exist_ok=True)
    started_s = time.monotonic()
    for name, images in DOMAINS.items():
        step(f"domains/{name}", *import_arguments(name, images))
        pmmrec("data", "verify", f"domains/{name}")
    pmmrec("data", "stats", *(f"domains/{name}" for name in DOMAINS))
    step("runs/small", "pretrain", "pretrain/small")
    step(
        "runs/sasrec",
        "finetune",
        "zoo/ids/small/sasrec_in_batch",
        *on_target("none"),
        "name=sasrec",
        "machine.device=cpu",
    )
    step("runs/zero-shot", "evaluate", "small", TARGET, "--name", "zero-shot", "--out", "runs/zero-shot")
    step("runs/scratch", "finetune", "finetune/small", *on_target("none"), "name=scratch")
    step("runs/transfer", "finetune", "finetune/small", *on_target("small"), "name=transfer")
    pmmrec("compare", *(f"runs/{name}" for name in ("sasrec", "zero-shot", "scratch", "transfer")))
    print(f"all steps: {(time.monotonic() - started_s) / 60:.1f} min")


def import_arguments(name: str, images: Path) -> list[str]:
    tables = [f"--{table}={DATA / name / table}.parquet" for table in ("items", "interactions")]
    return [
        "data",
        "import",
        "table",
        *tables,
        f"--images={images}",
        f"--name={name}",
        f"--out=domains/{name}",
        "--k-core=none",
    ]


def on_target(start_from: str) -> tuple[str, ...]:
    return ("--from", start_from, "--on", TARGET)


def step(result: str, *arguments: str) -> None:
    """Run a verb unless an earlier `make real` left its result; what a stopped one left is removed first."""
    path = HOME / result
    is_whole = any((path / name).exists() for name in ("metrics.json", "domain.json"))
    if is_whole:
        print(f"kept from an earlier time: {path}")
        return
    shutil.rmtree(path, ignore_errors=True)
    pmmrec(*arguments)


def pmmrec(*arguments: str) -> None:
    started_s = time.monotonic()
    print("$ pmmrec", " ".join(arguments), flush=True)
    code = subprocess.run(["pmmrec", *arguments], cwd=HOME, check=False).returncode
    if code:
        sys.exit(code)
    print(f"took {(time.monotonic() - started_s) / 60:.1f} min", flush=True)


if __name__ == "__main__":
    main()
