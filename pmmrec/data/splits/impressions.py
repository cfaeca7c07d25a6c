"""Impression split: sequences train, and held-out items are the clicked ones among those that were shown."""
# M impressions of the domain, C items shown in all of them. B users of one stretch, H items of their sequences.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.data.domain import Domain
from pmmrec.data.info import ITEMS_FILE, SEQUENCES_FILE
from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import HELD_OUT, Holdout, HoldoutName, Split, SplitPart, offsets_of, some_users, splits
from pmmrec.data.splits.stored import content_hash, open_stored, refuse_missing
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

IMPRESSIONS_FOLDER = "impressions"
IMPRESSIONS_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
IMPRESSION_FIELDS = (
    pa.field("items", pa.large_list(pa.int32())),  # item rows that were shown, all different
    pa.field("clicked", pa.large_list(pa.bool_())),  # of each; some are, some are not
    pa.field("user", pa.int64()),  # rising
    pa.field("part", pa.uint8()),  # SplitPart
)
KNOWN_FIELD = pa.field("known", pa.int64())  # first items of the user's sequence before it; no column: all of them
DOMAIN_KEY = b"pmmrec.domain"  # of the schema's metadata: hashes of the items and sequences that the lists are of


class ImpressionsConfig(PartConfig):
    """Settings of the impression split."""

    type: Literal["impressions"] = "impressions"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"name": "shown"},)
    name: str = Field(
        pattern=IMPRESSIONS_NAME, description="Name under which `pmmrec data impressions` stored them in the domain."
    )


class ShownLists(NamedTuple):
    """Several impressions: impression m showed item_C[offsets[m]:offsets[m+1]]."""

    user_M: NDArray[np.int64]  # rising
    known_M: NDArray[np.int64]  # first items of the user's sequence that came before it; never 0
    offsets: NDArray[np.int64]  # (M + 1,)
    item_C: NDArray[np.int32]  # item rows
    is_clicked_C: NDArray[np.bool_]


@splits.register("impressions", ImpressionsConfig)
class Impressions(Split):
    """Train on the domain's sequences; rank the items of each impression, of which the clicked are the targets.

    Each impression of validation or of the test is a query: its history is what its user did before it, its candidates
    are the items that were shown, and a user may have several. The protocol of news recommendation (MIND): the
    sequences hold what users did before the impressions, and `seen: include` ranks all that was shown. Where the file
    said for each impression how many items of the sequence are `known`, the history is these, and what follows the
    first held-out impression of a user does not train. Impressions of the training part train under
    `data.examples: {type: impressions}` alone.

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
        num_trained_B = self._num_trained[stretch.first : stretch.first + len(stretch.offset_B) - 1]
        place_H = np.arange(len(stretch.item_H)) - np.repeat(stretch.offset_B[:-1], np.diff(stretch.offset_B))
        is_trained_H = place_H < np.repeat(num_trained_B, np.diff(stretch.offset_B))
        return np.where(is_trained_H, SplitPart.TRAIN, SplitPart.TEST).astype(np.uint8)

    @property
    def stored(self) -> str:
        """See `Split.stored`."""
        return content_hash(self._table.columns)

    def has_query(self, name: HoldoutName) -> bool:
        """See `Split.has_query`."""
        if self.users is not None:
            return len(self.lists(HELD_OUT[name]).user_M) > 0
        return bool(pc.any(pc.equal(self._table["part"], int(HELD_OUT[name]))).as_py())

    def holdout(self, name: HoldoutName, num_users: int | None = None) -> Holdout:
        """See `Split.holdout`; a query is an impression, and a user may have several."""
        lists = self.lists(HELD_OUT[name], num_users)
        num_queries, sizes = len(lists.user_M), np.diff(lists.offsets)
        query_C = np.repeat(np.arange(num_queries), sizes)
        pairs = zip(lists.user_M.tolist(), lists.known_M.tolist(), strict=True)
        return Holdout(
            name=name,
            user_index=lists.user_M,
            target_offsets=offsets_of(np.bincount(query_C[lists.is_clicked_C], minlength=num_queries)),
            target=lists.item_C[lists.is_clicked_C].astype(np.int64),
            history_offsets=offsets_of(lists.known_M),
            history_items=np.concatenate([np.empty(0, np.int32), *(self.domain.sequence(u)[:n] for u, n in pairs)]),
            candidate_offsets=lists.offsets,
            candidates=lists.item_C.astype(np.int64),
        )

    def lists(self, part: SplitPart, num_users: int | None = None) -> ShownLists:
        """The impressions of one part: those of all users, or of `num_users`, always the same ones."""
        is_asked_M = (self._table["part"].to_numpy() == int(part)) & (self._known_M > 0)
        user_M = self._table["user"].to_numpy()
        if self.users is not None:
            is_in_M = self.users.is_in_M if part == SplitPart.TRAIN else self.users.is_ranked_M
            is_asked_M &= is_in_M[user_M]
        is_asked_M &= np.isin(user_M, some_users(np.unique(user_M[is_asked_M]), num_users))
        asked = self._table.filter(pa.array(is_asked_M)).combine_chunks()
        return ShownLists(
            user_M=user_M[is_asked_M].astype(np.int64),
            known_M=self._known_M[is_asked_M],
            offsets=offsets_of(pc.list_value_length(asked["items"]).to_numpy().astype(np.int64)),
            item_C=pc.list_flatten(asked["items"]).to_numpy(),
            is_clicked_C=pc.list_flatten(asked["clicked"]).to_numpy(zero_copy_only=False).astype(bool),
        )

    @cached_property
    def _known_M(self) -> NDArray[np.int64]:
        """How many items of its user's sequence come before each impression."""
        if KNOWN_FIELD.name in self._table.column_names:
            known_M: NDArray[np.int64] = self._table[KNOWN_FIELD.name].to_numpy()
            return known_M
        length_M: NDArray[np.int64] = _lengths(self.domain)[self._table["user"].to_numpy()]
        return length_M

    @cached_property
    def _num_trained(self) -> NDArray[np.int64]:
        """How many items of each user's sequence train: those before the user's first held-out impression."""
        num_trained = _lengths(self.domain)
        is_held_out_M = self._table["part"].to_numpy() != int(SplitPart.TRAIN)
        np.minimum.at(num_trained, self._table["user"].to_numpy()[is_held_out_M], self._known_M[is_held_out_M])
        return num_trained

    @cached_property
    def _table(self) -> pa.Table:
        """All impressions, in memory."""
        of_domain = domain_key(self.domain)
        return open_stored(self.path, IMPRESSION_FIELDS, DOMAIN_KEY, of_domain, "impressions").mapped()

    def __getstate__(self) -> dict[str, Any]:
        read_by_itself = ("_table", "_known_M", "_num_trained")  # by each process
        return {name: value for name, value in vars(self).items() if name not in read_by_itself}


def _lengths(domain: Domain) -> NDArray[np.int64]:
    """How many items each user of the domain touched."""
    return np.concatenate([lengths for _, lengths in domain.sequences.all_lengths()]).astype(np.int64)


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
        return
    if (user_M[1:] < user_M[:-1]).any():
        yield "its users are not in order"
    if not np.isin(part_M, [int(part) for part in SplitPart]).all():
        yield "a part is not one of train, validation and test"
    item_C, list_C = items.to_numpy().astype(np.int64), np.repeat(np.arange(len(size_M)), size_M)
    if len(item_C) and not 0 <= item_C.min() <= item_C.max() < domain.num_items:
        yield f"an item row is outside 0..{domain.num_items - 1}"
        return
    if len(np.unique(list_C * domain.num_items + item_C)) < len(item_C):
        yield "a list shows an item twice"
    if KNOWN_FIELD.name in table.column_names:
        known_M = table[KNOWN_FIELD.name].to_numpy()
        if ((known_M < 1) | (known_M > _lengths(domain)[user_M])).any():
            yield "an impression knows none of its user's items, or more than there are"
    num_clicked_M = np.bincount(list_C[clicked.to_numpy().astype(bool)], minlength=len(size_M))
    if ((num_clicked_M == 0) | (num_clicked_M == size_M)).any():
        yield "a list has no clicked item, or none but clicked ones"


def impressions_file(folder: Path, name: str) -> Path:
    """Where a domain stores impressions."""
    return folder / IMPRESSIONS_FOLDER / f"{name}.arrow"


def domain_key(domain: Domain) -> str:
    """A hash of items and sequences, which impressions refer to by row."""
    return f"{domain.info.sha256(ITEMS_FILE)} {domain.info.sha256(SEQUENCES_FILE)}"
