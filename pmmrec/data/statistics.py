"""Compute figures of a domain: its size, its sparsity, its texts and its images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from pmmrec.data.domain import Domain
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.modality import Modality

COLD_BELOW = 10  # train occurrences, as MoRec (arXiv 2303.13835) and PMMRec define cold items
USER_BATCH = 100_000
TEXT_BATCH = 10_000


@dataclass(frozen=True)
class DomainStatistics:
    """Figures of one domain, as papers print them."""

    name: str
    num_users: int
    num_items: int
    num_interactions: int
    mean_length: float
    median_length: float
    longest: int  # interactions of the user with the most
    density: float  # share of all (user, item) pairs that occur
    sparsity: float  # share of them that do not
    share_repeated: float  # of interactions, those with an item that the user touched before
    num_with_text: int
    num_with_image: int
    mean_words: float | None  # of the items with a text, between blanks; None: no item has one
    mean_characters: float | None
    mean_tokens: float | None  # special tokens included; None: no tokenizer was given
    num_cold_items: int  # fewer than COLD_BELOW occurrences in train
    num_with_column: dict[str, int]  # items that have a value, by further column


CountTokens: TypeAlias = Callable[[list[str]], list[int]]


def domain_statistics(domain: Domain, count_tokens: CountTokens | None = None) -> DomainStatistics:
    """The figures of `domain`; reads its sequences and texts, not its images. `count_tokens`: of each text."""
    lengths = np.diff(domain.sequence_offsets)
    num_pairs = _num_distinct_pairs(domain)
    words, characters, tokens = _text_sizes(domain, count_tokens)
    num_with_text = int(domain.has[Modality.TEXT].sum())
    return DomainStatistics(
        name=domain.name,
        num_users=domain.num_users,
        num_items=domain.num_items,
        num_interactions=domain.num_interactions,
        mean_length=float(lengths.mean()),
        median_length=float(np.median(lengths)),
        longest=int(lengths.max()),
        density=num_pairs / (domain.num_users * domain.num_items),
        sparsity=1 - num_pairs / (domain.num_users * domain.num_items),
        share_repeated=1 - num_pairs / domain.num_interactions,
        num_with_text=num_with_text,
        num_with_image=int(domain.has[Modality.IMAGE].sum()),
        mean_words=words / num_with_text if num_with_text else None,
        mean_characters=characters / num_with_text if num_with_text else None,
        mean_tokens=tokens / num_with_text if num_with_text and count_tokens is not None else None,
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


def _text_sizes(domain: Domain, count_tokens: CountTokens | None) -> tuple[int, int, int]:
    """Words, characters and tokens of all texts."""
    words = characters = tokens = 0
    rows = np.flatnonzero(domain.has[Modality.TEXT])
    for first in range(0, len(rows), TEXT_BATCH):
        texts = [text for text in domain.texts(rows[first : first + TEXT_BATCH]) if text is not None]
        words += sum(len(text.split()) for text in texts)
        characters += sum(map(len, texts))
        tokens += sum(count_tokens(texts)) if count_tokens is not None else 0
    return words, characters, tokens
