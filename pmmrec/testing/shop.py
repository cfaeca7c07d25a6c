"""A small domain for splits, examples and what else reads interactions: with times, and with stored splits."""

from __future__ import annotations

import random
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from pmmrec.data.domain import Domain
from pmmrec.data.importers.given_split import store_split
from pmmrec.data.importers.impressions import store_impressions
from pmmrec.data.importers.table import TableImport, import_table

NUM_USERS, NUM_ITEMS, NUM_LISTS = 40, 31, 90
GIVEN_SPLIT, IMPRESSIONS = "drawn", "shown"  # names of what is stored in the domain
LIST_COLUMNS = ("impression_id", "user_id", "split", "known", "item_id", "clicked")


@cache
def shop() -> Domain:
    """Forty users with one to thirty interactions; items repeat. It is made once a process."""
    folder, draw = Path(_folder().name), random.Random(8)  # noqa: S311 - no secret
    titles = {"item_id": [f"i{row}" for row in range(NUM_ITEMS)], "text": [f"title {row}" for row in range(NUM_ITEMS)]}
    log = []
    for user in range(NUM_USERS):
        start, length = draw.randint(0, 400), draw.randint(1, 30)
        log += [(f"u{user}", f"i{draw.randint(0, 30)}", start + draw.randint(0, 400)) for _ in range(length)]
    users, items, times = zip(*log, strict=True)
    parts = draw.choices(["train", "validation", "test"], weights=[6, 2, 2], k=len(log))
    done = {"user_id": users, "item_id": items}
    tables = {"items": titles, "log": {**done, "timestamp": times}, "parts": {**done, "split": parts}}
    lengths, lists = Counter(users), []
    for number in range(NUM_LISTS):
        user_id = f"u{draw.randint(0, 39)}"
        known = draw.randint(1, lengths[user_id])
        lists.append((f"l{number}", user_id, draw.choice(["train", "validation", "test"]), str(known)))
    rows = [
        (*of_list, f"i{item}", str(int(place < 2)))
        for of_list in lists
        for place, item in enumerate(draw.sample(range(NUM_ITEMS), 7))
    ]
    tables["lists"] = dict(zip(LIST_COLUMNS, zip(*rows, strict=True), strict=True))
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    plan = {"items": folder / "items.parquet", "interactions": folder / "log.parquet", "k_core": None}
    made = import_table(TableImport.model_validate({**plan, "name": "shop", "out": folder / "shop"}))
    store_split(made.folder, folder / "parts.parquet", GIVEN_SPLIT)
    store_impressions(made.folder, folder / "lists.parquet", IMPRESSIONS)
    return made


@cache
def _folder() -> TemporaryDirectory[str]:
    """Kept until the process ends."""
    return TemporaryDirectory()
