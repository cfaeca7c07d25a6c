"""Work is divided among processes without gaps or overlaps."""

from __future__ import annotations

import pytest

from pmmrec.errors import RecipeError
from pmmrec.evaluation.share import Share


def test_without_a_launcher_there_is_one_process() -> None:
    assert Share.of({}) == Share(0, 1, 0)
    assert Share.of({}).device is None


def test_a_launcher_sets_the_number_of_the_process() -> None:
    assert Share.of({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}) == Share(3, 4, 1)


@pytest.mark.parametrize("words", [{"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}])
def test_invalid_ranks_are_refused(words: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="RANK"):
        Share.of(words)


@pytest.mark.parametrize("total", [0, 1, 2, 7, 100])
def test_spans_cover_all_pieces_and_every_process_tries_all(total: int) -> None:
    shares = [Share(index, 3) for index in range(3)]
    assert [place for share in shares for place in range(total)[share.span(total)]] == list(range(total))
    for share in shares:
        order = share.order(total)
        own = range(total)[share.span(total)]
        assert sorted(order) == list(range(total))
        assert order[: len(own)] == list(own)
