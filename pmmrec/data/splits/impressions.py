"""Impression split: users are trained on whole, and held-out items are the clicked ones among those that were shown."""
# M impressions of the domain, C items shown in all of them. B users of one stretch, H items of their sequences.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.data.domain import Domain
from pmmrec.data.info import ITEMS_FILE, SEQUENCES_FILE
from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import HELD_OUT, Holdout, HoldoutName, Split, SplitPart, offsets_of, some_users, splits
from pmmrec.data.splits.stored import open_stored, refuse_missing
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

IMPRESSIONS_FOLDER = "impressions"
IMPRESSIONS_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
IMPRESSION_FIELDS = (
    pa.field("items", pa.large_list(pa.int32())),  # item rows that were shown, all different
    pa.field("clicked", pa.large_list(pa.bool_())),  # of each; some are, some are not
    pa.field("user", pa.int64()),  # rising
    pa.field("part", pa.uint8()),  # SplitPart, validation or test
)
DOMAIN_KEY = b"pmmrec.domain"  # of the schema's metadata: hashes of the items and sequences that the lists are of


class ImpressionsConfig(PartConfig):
    """Settings of the impression split."""

    type: Literal["impressions"] = "impressions"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"name": "shown"},)
    name: str = Field(
        pattern=IMPRESSIONS_NAME, description="Name under which `pmmrec data impressions` stored them in the domain."
    )


@splits.register("impressions", ImpressionsConfig)
class Impressions(Split):
    """Train on all interactions of the domain; rank the items of each impression, of which the clicked are the targets.

    Each impression of validation or of the test is a query: its history is the whole sequence of its user, its
    candidates are the items that were shown, and a user may have several. The protocol of news recommendation (MIND):
    the sequences hold what users did before the impressions, and `seen: include` ranks all that was shown.

    Example:
        data: {split: {type: impressions, name: shown}}
    """

    ranks_lists = True
    no_query = "there is no impression of this part"
    config: ImpressionsConfig

    def __init__(self, config: ImpressionsConfig, domain: Domain) -> None:
        super().__init__(config, domain)
        self.path = impressions_file(domain.folder, config.name)
        refuse_missing(self.path, domain.folder, "impressions", "impressions")
        if wrong := list(_wrong(self._table, domain)):
            raise DataError(f"{self.path}: {'; '.join(wrong)}; store the impressions again")

    def parts(self, stretch: Stretch) -> NDArray[np.uint8]:
        return np.full(len(stretch.item_H), SplitPart.TRAIN, dtype=np.uint8)

    def has_query(self, name: HoldoutName) -> bool:
        """See `Split.has_query`."""
        return bool(pc.any(pc.equal(self._table["part"], int(HELD_OUT[name]))).as_py())

    def holdout(self, name: HoldoutName, num_users: int | None = None) -> Holdout:
        """See `Split.holdout`; a query is an impression, and a user may have several."""
        of_part = self._table.filter(pc.equal(self._table["part"], int(HELD_OUT[name])))
        users = some_users(np.unique(of_part["user"].to_numpy()), num_users)
        asked = of_part.filter(pc.is_in(of_part["user"], value_set=pa.array(users))).combine_chunks()
        user_index = asked["user"].to_numpy().astype(np.int64)
        size_Q = pc.list_value_length(asked["items"]).to_numpy().astype(np.int64)
        item_C = pc.list_flatten(asked["items"]).to_numpy().astype(np.int64)
        is_clicked_C = pc.list_flatten(asked["clicked"]).to_numpy(zero_copy_only=False).astype(bool)
        query_C = np.repeat(np.arange(len(user_index)), size_Q)
        num_targets_Q = np.bincount(query_C[is_clicked_C], minlength=len(user_index))
        histories = [self.domain.sequence(user) for user in user_index.tolist()]
        return Holdout(
            name=name,
            user_index=user_index,
            target_offsets=offsets_of(num_targets_Q),
            target=item_C[is_clicked_C],
            history_offsets=offsets_of(np.array([len(history) for history in histories], dtype=np.int64)),
            history_items=np.concatenate([np.empty(0, np.int32), *histories]),
            candidate_offsets=offsets_of(size_Q),
            candidates=item_C,
        )

    @cached_property
    def _table(self) -> pa.Table:
        """All impressions, in memory."""
        of_domain = domain_key(self.domain)
        return open_stored(self.path, IMPRESSION_FIELDS, DOMAIN_KEY, of_domain, "impressions").mapped()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_table"}  # a process reads it itself


def _wrong(table: pa.Table, domain: Domain) -> Iterator[str]:
    """What is wrong with stored impressions: each user is one of the domain, each list is of its items, and so on."""
    items, clicked = pc.list_flatten(table["items"]), pc.list_flatten(table["clicked"])
    if any(column.null_count for column in (*table.columns, items, clicked)):
        yield "an entry is missing"
        return
    user_M, part_M = table["user"].to_numpy(), table["part"].to_numpy()
    size_M = pc.list_value_length(table["items"]).to_numpy()
    if not np.array_equal(size_M, pc.list_value_length(table["clicked"]).to_numpy()):
        yield "a list has other numbers of items and of clicks"
        return
    if len(user_M) and not 0 <= user_M.min() <= user_M.max() < domain.num_users:
        yield f"a user row is outside 0..{domain.num_users - 1}"
    if (user_M[1:] < user_M[:-1]).any():
        yield "its users are not in order"
    if not np.isin(part_M, [int(part) for part in HELD_OUT.values()]).all():
        yield "a part is neither validation nor test"
    item_C, list_C = items.to_numpy().astype(np.int64), np.repeat(np.arange(len(size_M)), size_M)
    if len(item_C) and not 0 <= item_C.min() <= item_C.max() < domain.num_items:
        yield f"an item row is outside 0..{domain.num_items - 1}"
        return
    if len(np.unique(list_C * domain.num_items + item_C)) < len(item_C):
        yield "a list shows an item twice"
    num_clicked_M = np.bincount(list_C[clicked.to_numpy().astype(bool)], minlength=len(size_M))
    if ((num_clicked_M == 0) | (num_clicked_M == size_M)).any():
        yield "a list has no clicked item, or none but clicked ones"


def impressions_file(folder: Path, name: str) -> Path:
    """Where a domain stores impressions."""
    return folder / IMPRESSIONS_FOLDER / f"{name}.arrow"


def domain_key(domain: Domain) -> str:
    """A hash of items and sequences, which impressions refer to by row."""
    return f"{domain.info.sha256(ITEMS_FILE)} {domain.info.sha256(SEQUENCES_FILE)}"
