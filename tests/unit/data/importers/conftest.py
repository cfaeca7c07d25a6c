"""A small shop in csv files, imported in one call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.data.importers.rejections import COLUMNS
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
def left_out() -> Callable[[Domain], list[dict]]:
    """Rows of rejected.parquet; none where there is no such file."""

    def read(domain: Domain) -> list[dict]:
        path = domain.folder / "rejected.parquet"
        if not path.exists():
            return []
        table = pq.read_table(path)
        assert tuple(table.column_names) == COLUMNS
        return table.to_pylist()

    return read


@pytest.fixture
def places(left_out: Callable) -> Callable[[Domain, str], list[tuple]]:
    """File, line, column and value of each rejected row of a kind, in the order of rows."""

    def read(domain: Domain, kind: str) -> list[tuple]:
        names = ("file", "line", "column", "value")
        return [tuple(row[name] for name in names) for row in left_out(domain) if row["kind"] == kind]

    return read


@pytest.fixture
def rejected(left_out: Callable) -> Callable[[Domain], list[tuple]]:
    """Rows of rejected.parquet: kind, id, row, reason."""
    return lambda domain: [tuple(row.values())[:4] for row in left_out(domain)]


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
