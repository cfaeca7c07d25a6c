from collections import Counter
from collections.abc import Callable

import numpy as np

from pmmrec.data import statistics
from pmmrec.data.domain import Domain
from pmmrec.data.statistics import domain_statistics

SEQUENCES = [[0, 1, 0, 2], [2, 2, 2], [3], [1] * 14]


def test_statistics_are_those_of_loops(make_domain: Callable[..., Domain], monkeypatch) -> None:
    monkeypatch.setattr(statistics, "USER_BATCH", 3)
    found = domain_statistics(make_domain(SEQUENCES, images=[0, 3]))
    actions = [(user, item) for user, sequence in enumerate(SEQUENCES) for item in sequence]
    train = Counter(item for sequence in SEQUENCES for item in (sequence[:-2] if len(sequence) > 2 else sequence))
    assert (found.num_users, found.num_items, found.num_interactions) == (4, 4, len(actions))
    assert found.mean_length == np.mean([len(sequence) for sequence in SEQUENCES])
    assert found.median_length == np.median([len(sequence) for sequence in SEQUENCES])
    assert found.density == len(set(actions)) / 16
    assert found.share_repeated == 1 - len(set(actions)) / len(actions)
    assert (found.num_with_text, found.num_with_image) == (4, 2)
    assert found.num_cold_items == sum(train[item] < 10 for item in range(4)) == 3


def test_statistics_can_be_printed(make_domain: Callable[..., Domain]) -> None:
    lines = domain_statistics(make_domain(SEQUENCES)).lines()
    assert lines[0] == "shop: 4 users, 4 items, 22 interactions"
    assert "repeated interactions 72.7%" in lines[2]
