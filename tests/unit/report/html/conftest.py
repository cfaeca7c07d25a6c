"""A domain whose texts, ids and names contain markup, and an evaluation of a checkpoint on it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from command_line import working_in
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.data.importers.table import TableImport, import_table

SCRIPT = "<script>document.title='pwned'</script>"
QUOTES = "\" onerror='document.title=1' x=\"{{ 7 * 7 }} & <b>bold</b>"
SYSTEM = f"zero<i>shot</i>{QUOTES}"
USERS, ITEMS = 12, 16
MAGENTA = (255, 0, 255)


@pytest.fixture(scope="session")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A domain of sixteen items, every other with a magenta picture, and twelve users."""
    files = tmp_path_factory.mktemp("hostile")
    (files / "images").mkdir()
    with (files / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["item_id", "text", "kind"])
        for item in range(ITEMS):
            text = f"{item} {SCRIPT if item % 2 else QUOTES}"
            writer.writerow([f"i{item}", text, f"<u>kind {item % 3}</u>"])
            if item % 2 == 0:
                Image.new("RGB", (48, 64), MAGENTA).save(files / "images" / f"i{item}.png")
    with (files / "interactions.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["user_id", "item_id", "timestamp"])
        for user in range(USERS):
            for place in range(3 + user % 4):
                writer.writerow([f"<b>u{user}</b>{SCRIPT}", f"i{(5 * user + 3 * place) % ITEMS}", place])
    tables = {"items": files / "items.csv", "interactions": files / "interactions.csv"}
    import_table(TableImport(**tables, images=files / "images", name="hostile", out=files / "domain", k_core=None))
    return files / "domain"


@pytest.fixture
def hostile_domain(hostile: Path) -> Domain:
    return Domain.open(hostile)


@pytest.fixture(scope="session")
def checkpoint(small_run: Path) -> Path:
    """The folder of a tiny trained checkpoint."""
    return small_run / "runs" / "small" / "checkpoint"


@pytest.fixture(scope="session")
def evaluated(tmp_path_factory: pytest.TempPathFactory, hostile: Path, checkpoint: Path) -> Path:
    """The output of `evaluate --out` of the checkpoint on that domain."""
    from pmmrec.system import load

    home = tmp_path_factory.mktemp("evaluated")
    with working_in(home):
        load(checkpoint, cache=home / "c").evaluate(hostile, name=SYSTEM, out=home / "run")
    return home / "run"


@pytest.fixture(scope="session")
def system_name() -> str:
    """The name of the evaluated system."""
    return SYSTEM
