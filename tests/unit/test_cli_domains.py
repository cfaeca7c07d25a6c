"""Commands that make domains and tables from domains, on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import Pmmrec

from pmmrec.data.domain import Domain


def test_a_sample_a_split_and_a_merge_by_one_command_each(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    sampled = pmmrec("data", "sample", world / "bazaar", "--users", 20, "--out", "some", "--seed", 3)
    assert sampled.code == 0, sampled.output
    assert "outside the sample of 20 users (seed 3)" in sampled.output
    assert Domain.open(home / "some").num_users == 20
    stored = pmmrec("data", "split", "some", "--name", "paper", "--by", "{type: ratio, by: time}")
    assert stored.code == 0, stored.output
    assert (home / "some" / "splits" / "paper.arrow").is_file()
    merged = pmmrec("data", "merge", "some", world / "gallery", "--out", "both", "--same-ids", "prefix")
    assert merged.code == 0, merged.output
    assert pmmrec("data", "verify", "both").code == 0


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("sample", "{}", "--out", "x"), "give a number of users, of items, or both"),
        (("sample", "{}", "--users", 5, "--items", "few", "--out", "x"), "items"),
        (("sample", "{}", "--users", 5, "--out", "a b"), "name"),
        (("split", "{}", "--name", "x"), "give one of the two"),
        (("split", "{}", "--name", "x", "--by", "loo"), "no split is called 'loo'"),
        (("merge", "{}", "{}", "--out", "x"), "named twice"),
    ],
)
def test_what_cannot_be_meant_ends_with_2_and_leaves_nothing(
    home: Path, world: Path, pmmrec: Pmmrec, words: tuple, told: str
) -> None:
    result = pmmrec("data", *(str(word).format(world / "bazaar") for word in words))
    assert (result.code, list(home.iterdir())) == (2, []), result.output
    assert told in result.output
