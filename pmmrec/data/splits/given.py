"""Given split: a file of the domain says which part each interaction belongs to."""
# B users of one stretch, H items of their sequences.

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from pmmrec.data.domain import Domain
from pmmrec.data.info import SEQUENCES_FILE
from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import Split, SplitPart, splits
from pmmrec.data.splits.stored import content_hash, open_stored, refuse_missing
from pmmrec.errors import DataError
from pmmrec.settings import PartConfig

SPLITS_FOLDER = "splits"
SPLIT_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
PARTS_FIELD = pa.field("parts", pa.large_list(pa.uint8()))  # a SplitPart for each item of a user
SEQUENCES_KEY = b"pmmrec.sequences"  # of the schema's metadata: the hash of the sequences that the split is of


class GivenConfig(PartConfig):
    """Settings of the given split."""

    type: Literal["given"] = "given"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"name": "drawn"},)
    name: str = Field(pattern=SPLIT_NAME, description="Name under which `pmmrec data split` stored it in the domain.")


@splits.register("given", GivenConfig)
class Given(Split):
    """Take the part of each interaction from `splits/NAME.arrow` of the domain, made by `pmmrec data split`.

    A query has all validation or test items of its user as targets. Its history is what the user did in the parts
    before, in the order of the sequence.

    Example:
        data: {split: {type: given, name: drawn}}
    """

    no_query = "no user has both a held-out item and one of a part before it"
    config: GivenConfig

    def __init__(self, config: GivenConfig, domain: Domain) -> None:
        super().__init__(config, domain)
        self.path = split_file(domain.folder, config.name)
        refuse_missing(self.path, domain.folder, "split", "split")
        for first, lengths_B in domain.sequences.all_lengths():
            self._check(self._lists.slice(first, len(lengths_B)), lengths_B)

    def parts(self, stretch: Stretch) -> NDArray[np.uint8]:
        lists = self._lists.slice(stretch.first, len(stretch.offset_B) - 1).combine_chunks()
        part_H: NDArray[np.uint8] = lists.flatten().to_numpy()
        return part_H

    @property
    def stored(self) -> str:
        """See `Split.stored`."""
        return content_hash([self._lists])

    @cached_property
    def _lists(self) -> pa.ChunkedArray:
        """The parts of each user, mapped from the file."""
        of_domain = self.domain.info.sha256(SEQUENCES_FILE)
        return open_stored(self.path, (PARTS_FIELD,), SEQUENCES_KEY, of_domain, "split").mapped(["parts"])["parts"]

    def _check(self, lists: pa.ChunkedArray, lengths_B: NDArray[np.int64]) -> None:
        """DataError unless there is a part for each interaction of some users, who have so many."""
        parts = pc.list_flatten(lists)
        fits = not lists.null_count and not parts.null_count and len(lists) == len(lengths_B)
        if not fits or not np.array_equal(pc.list_value_length(lists).to_numpy(), lengths_B):
            raise DataError(f"{self.path}: does not fit the sequences of the domain; store the split again")
        wrong = pc.unique(parts.filter(pc.greater(parts, int(SplitPart.TEST)))).to_pylist()
        if wrong:
            raise DataError(f"{self.path}: {wrong[0]} is not a part of a split; store the split again")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lists"}  # a process maps the file itself


def split_file(folder: Path, name: str) -> Path:
    """Where a domain stores a given split."""
    return folder / SPLITS_FOLDER / f"{name}.arrow"
