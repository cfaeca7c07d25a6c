"""Cut a platform into two halves that share no user."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import Field

from pmmrec.atomic import whole_file
from pmmrec.errors import DataError
from pmmrec.settings import Config


class UserCut(Config):
    """One half of a platform's users, drawn by a hash of their ids, so every draw gives the same users."""

    salt: str = Field(min_length=1, description="Another salt gives another draw. Both halves need the same one.")
    share: float = Field(0.5, gt=0, lt=1, description="Share of the users in half a.")
    half: Literal["a", "b"]

    def keeps(self, user_id: str) -> bool:
        """Whether the user is in this half: by the first 8 bytes of sha256 of `SALT/USER` as a share of 2**64."""
        digest = hashlib.sha256(f"{self.salt}/{user_id}".encode()).digest()
        is_in_a = int.from_bytes(digest[:8], "big") < self.share * 2**64
        return is_in_a == (self.half == "a")


def cut_users(items: Path, interactions: Path, cut: UserCut, out: Path) -> tuple[Path, Path]:
    """Write the half's items and interactions (parquet) into `out` and return their paths.

    Users keep all their interactions; items without any of these are left out. Raises DataError where a file cannot be
    read, lacks `item_id` or `user_id`, or where the half has no user.
    """
    actions, catalogue = _read(interactions, ("user_id", "item_id")), _read(items, ("item_id",))
    user_ids = pc.unique(actions["user_id"])
    kept_users = pa.array([id_ for id_ in user_ids.to_pylist() if id_ is not None and cut.keeps(id_)], pa.string())
    kept = actions.filter(pc.is_in(actions["user_id"].cast(pa.string()), value_set=kept_users))
    if not len(kept):
        raise DataError(f"{interactions}: half {cut.half} of salt {cut.salt!r} has no user; choose another share")
    touched = pc.is_in(catalogue["item_id"].cast(pa.string()), value_set=pc.unique(kept["item_id"].cast(pa.string())))
    places = out / "items.parquet", out / "interactions.parquet"
    for place, table in zip(places, (catalogue.filter(touched), kept), strict=True):
        with whole_file(place) as draft:
            pq.write_table(table, draft)
    return places


def _read(path: Path, needed: tuple[str, ...]) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as parquet: {error}") from error
    for column in needed:
        if column not in table.column_names:
            raise DataError(f"{path}: has no column {column}; it needs {' and '.join(needed)}")
    return table
