"""Compute figures of a domain: its size, its density and its missing texts and images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pmmrec.data.domain import Domain
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.modality import Modality

COLD_BELOW = 10  # train occurrences, as MoRec (arXiv 2303.13835) and PMMRec define cold items
USER_BATCH = 100_000


@dataclass(frozen=True)
class DomainStatistics:
    """Figures of one domain, as papers print them."""

    name: str
    num_users: int
    num_items: int
    num_interactions: int
    mean_length: float
    median_length: float
    density: float  # share of all (user, item) pairs that occur
    share_repeated: float  # of interactions, those with an item that the user touched before
    num_with_text: int
    num_with_image: int
    num_cold_items: int  # fewer than COLD_BELOW occurrences in train
    num_with_column: dict[str, int]  # items that have a value, by further column

    def lines(self) -> list[str]:
        """The figures as text, one fact a line."""
        return [
            f"{self.name}: {self.num_users:,} users, {self.num_items:,} items, {self.num_interactions:,} interactions",
            f"length of a sequence: mean {self.mean_length:.1f}, median {self.median_length:g}",
            f"density {self.density:.4%}, repeated interactions {self.share_repeated:.1%}",
            f"items with text {self.num_with_text:,}, with image {self.num_with_image:,}",
            *(f"items with column {name} {count:,}" for name, count in self.num_with_column.items()),
            f"cold items (fewer than {COLD_BELOW} occurrences in train): {self.num_cold_items:,}",
        ]


def domain_statistics(domain: Domain) -> DomainStatistics:
    """The figures of `domain`; reads its sequences, not its images."""
    lengths = np.diff(domain.sequence_offsets)
    num_pairs = _num_distinct_pairs(domain)
    return DomainStatistics(
        name=domain.name,
        num_users=domain.num_users,
        num_items=domain.num_items,
        num_interactions=domain.num_interactions,
        mean_length=float(lengths.mean()),
        median_length=float(np.median(lengths)),
        density=num_pairs / (domain.num_users * domain.num_items),
        share_repeated=1 - num_pairs / domain.num_interactions,
        num_with_text=int(domain.has[Modality.TEXT].sum()),
        num_with_image=int(domain.has[Modality.IMAGE].sum()),
        num_cold_items=int((leave_one_out(domain).train_counts < COLD_BELOW).sum()),
        num_with_column={name: int(domain.has_text(name).sum()) for name in domain.attributes},
    )


def _num_distinct_pairs(domain: Domain) -> int:
    offsets, num_pairs = domain.sequence_offsets, 0
    for first in range(0, domain.num_users, USER_BATCH):
        last = min(first + USER_BATCH, domain.num_users)
        user = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]))
        items = domain.sequence_items[offsets[first] : offsets[last]]
        num_pairs += len(np.unique(user * domain.num_items + items))
    return num_pairs
