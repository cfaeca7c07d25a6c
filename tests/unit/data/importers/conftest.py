"""A small shop in csv files, imported in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.data.importers.table import TableImport, import_table

ITEMS = "item_id,text\na,red shirt\nb,blue shirt\nc,hat\n"
INTERACTIONS = "user_id,item_id,timestamp\nu,a,1\nv,b,2\nu,c,3\nv,a,4\n"


@dataclass
class Shop:
    """Files of a user in one folder. `run` imports them, every interaction that stands, unless told otherwise."""

    folder: Path
    items: Path = field(init=False)
    interactions: Path = field(init=False)

    def __post_init__(self) -> None:
        self.items = self.write("items.csv", ITEMS)
        self.interactions = self.write("interactions.csv", INTERACTIONS)

    @property
    def out(self) -> Path:
        return self.folder / "domain"

    def write(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def paint(self, name: str, shade: int = 100) -> Path:
        path = self.folder / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (32, 32), (shade,) * 3).save(path)
        return path

    def run(self, **settings: object) -> Domain:
        tree = {"items": self.items, "interactions": self.interactions, "name": "shop", "out": self.out, "k_core": None}
        return import_table(TableImport.model_validate({**tree, **settings}))


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.fixture
def rejected() -> Callable[[Domain], list[tuple]]:
    """Rows of rejected.parquet: kind, id, row, reason."""

    def read(domain: Domain) -> list[tuple]:
        table = pq.read_table(domain.folder / "rejected.parquet")
        assert table.column_names == ["kind", "id", "row", "reason"]
        return [tuple(row.values()) for row in table.to_pylist()]

    return read


@pytest.fixture
def sequences() -> Callable[[Domain], dict[str, list[str]]]:
    """Item ids of each user, by user id, in the order of the domain."""

    def read(domain: Domain) -> dict[str, list[str]]:
        ids = domain.item_ids.to_pylist()
        return {
            user_id: [ids[row] for row in domain.sequence(user)]
            for user, user_id in enumerate(domain.user_ids.to_pylist())
        }

    return read
