"""Figures of domains are those of loops."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from pmmrec.data import statistics
from pmmrec.data.domain import Domain
from pmmrec.data.statistics import domain_statistics

SEQUENCES = [[0, 1, 0, 2], [2, 2, 2], [3], [1] * 14]


def test_statistics_are_those_of_loops(make_domain: Callable[..., Domain], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "USER_BATCH", 3)
    monkeypatch.setattr(statistics, "TEXT_BATCH", 2)
    texts = ["a red shirt", None, "caf\u00e9", "blue hat"]
    found = domain_statistics(
        make_domain(SEQUENCES, texts=texts, images=[0, 1, 3]), lambda some: [len(t) + 2 for t in some]
    )
    actions = [(user, item) for user, sequence in enumerate(SEQUENCES) for item in sequence]
    train = Counter(item for sequence in SEQUENCES for item in (sequence[:-2] if len(sequence) > 2 else sequence))
    assert (found.num_users, found.num_items, found.num_interactions) == (4, 4, len(actions))
    assert found.mean_length == np.mean([len(sequence) for sequence in SEQUENCES])
    assert found.median_length == np.median([len(sequence) for sequence in SEQUENCES])
    assert found.longest == 14
    assert found.density == len(set(actions)) / 16
    assert found.sparsity == 1 - len(set(actions)) / 16
    assert found.share_repeated == 1 - len(set(actions)) / len(actions)
    assert (found.num_with_text, found.num_with_image) == (3, 3)
    assert (found.mean_words, found.mean_characters, found.mean_tokens) == (6 / 3, 23 / 3, 29 / 3)
    assert found.num_cold_items == sum(train[item] < 10 for item in range(4)) == 3


def test_a_domain_without_texts_has_no_words(make_domain: Callable[..., Domain]) -> None:
    found = domain_statistics(make_domain([[0, 1]], texts=[None, None], images=[0, 1]))
    assert (found.mean_words, found.mean_characters, found.mean_tokens) == (None, None, None)
