"""Impression split: users are trained on whole, and held-out items are the clicked ones among those that were shown."""
# M impressions of the domain, C items shown in all of them. B users of one stretch, H items of their sequences.

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.data.arrow import ArrowTable
from pmmrec.data.domain import Domain
from pmmrec.data.info import ITEMS_FILE, SEQUENCES_FILE
from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import HELD_OUT, Holdout, HoldoutName, Split, SplitPart, offsets_of, some_users, splits
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
        if not self.path.is_file():
            there = sorted(path.stem for path in self.path.parent.glob("*.arrow"))
            raise DataError(
                f"{domain.folder}: data.split: has no impressions {config.name!r}; there are: "
                f"{', '.join(there) or 'none'}; `pmmrec data impressions {domain.folder} --from FILE --name "
                f"{config.name}` stores some"
            )

    def parts(self, stretch: Stretch) -> NDArray[np.uint8]:
        return np.full(len(stretch.item_H), SplitPart.TRAIN, dtype=np.uint8)

    def holdout(self, name: HoldoutName, num_users: int | None = None) -> Holdout:
        """See `Split.holdout`; a query is an impression, and a user may have several."""
        of_part = self._table.filter(pa.compute.equal(self._table["part"], int(HELD_OUT[name])))
        users = some_users(np.unique(of_part["user"].to_numpy()), num_users)
        asked = of_part.filter(pa.compute.is_in(of_part["user"], value_set=pa.array(users))).combine_chunks()
        user_index = asked["user"].to_numpy().astype(np.int64)
        size_Q = pa.compute.list_value_length(asked["items"]).to_numpy().astype(np.int64)
        item_C = pa.compute.list_flatten(asked["items"]).to_numpy().astype(np.int64)
        is_clicked_C = pa.compute.list_flatten(asked["clicked"]).to_numpy(zero_copy_only=False).astype(bool)
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
        try:
            found = pa.ipc.open_file(pa.memory_map(str(self.path)))
            num_rows = found.read_all().num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: cannot be read: {error}; store the impressions again") from error
        if (found.schema.metadata or {}).get(DOMAIN_KEY, b"").decode() != domain_key(self.domain):
            raise DataError(f"{self.path}: is of other items or sequences than the domain's; store it again")
        return ArrowTable([self.path], IMPRESSION_FIELDS, num_rows).mapped()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_table"}  # a process reads it itself


def impressions_file(folder: Path, name: str) -> Path:
    """Where a domain stores impressions."""
    return folder / IMPRESSIONS_FOLDER / f"{name}.arrow"


def domain_key(domain: Domain) -> str:
    """A hash of items and sequences, which impressions refer to by row."""
    return f"{domain.info.sha256(ITEMS_FILE)} {domain.info.sha256(SEQUENCES_FILE)}"
