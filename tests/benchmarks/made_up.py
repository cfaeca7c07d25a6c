"""Make platforms of any size up, with texts and pictures, to measure on where there is no real data."""

from __future__ import annotations

import csv
import random
from pathlib import Path

from PIL import Image

from pmmrec.data.demo_titles import TOPIC_WORDS
from pmmrec.data.importers.table import TableImport, import_table

MEAN_ACTIONS = 12  # of a user; lengths of histories fall off as those of real shops do
MOST_ACTIONS = 60


def made_up(home: Path, name: str, *, items: int, users: int = 400) -> Path:
    """A domain below `home`, made at the first time; the same arguments give the same domain."""
    folder = home / name
    if (folder / "domain.json").exists():
        return folder
    tables, draw = home / f"{name}-tables", random.Random(name)
    (tables / "images").mkdir(parents=True, exist_ok=True)
    ids = [f"{name}{row:05d}" for row in range(items)]
    words = [word for topic in TOPIC_WORDS for word in topic]
    texts = [" ".join(draw.choices(words, k=2 + min(int(draw.expovariate(0.25)), 16))) for _ in ids]
    for item in ids:
        Image.new("RGB", (32, 32), tuple(draw.choices(range(256), k=3))).save(tables / "images" / f"{item}.jpg")
    weights = [1 / (1 + row) ** 0.7 for row in range(items)]
    log: list[list[object]] = []
    for user in range(users):
        length = 5 + min(int(draw.expovariate(1 / (MEAN_ACTIONS - 5))), MOST_ACTIONS - 5)
        seen = dict.fromkeys(draw.choices(ids, weights, k=2 * length))
        log += [[f"u{user}", item, place] for place, item in enumerate([*seen][:length])]
    _write(tables / "items.csv", ["item_id", "text"], [list(pair) for pair in zip(ids, texts, strict=True)])
    _write(tables / "interactions.csv", ["user_id", "item_id", "timestamp"], log)
    named = {kind: tables / f"{kind}.csv" for kind in ("items", "interactions")}
    import_table(TableImport(**named, images=tables / "images", name=name, out=folder, k_core=None))
    return folder


def _write(path: Path, header: list[str], rows: list[list[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
