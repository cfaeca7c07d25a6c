"""Features: stored from files and checkpoints, checked like the rest of a domain."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Pmmrec, working_in

from pmmrec.data.domain import Domain
from pmmrec.data.verify import verify_domain
from pmmrec.system import load


@pytest.fixture
def boutique(world: Path, tmp_path: Path) -> Path:
    """A copy of a platform, to store features in."""
    return Path(shutil.copytree(world / "boutique", tmp_path / "boutique"))


def test_vectors_of_a_checkpoint_are_stored(boutique: Path, small_run: Path, pmmrec: Pmmrec) -> None:
    kept = small_run / "hub" / "small"
    with working_in(boutique.parent):
        for name, of in (("whole", ()), ("words", ("--vectors", "text")), ("pictures", ("--vectors", "image"))):
            told = pmmrec("data", "features", boutique, "--from", kept, "--name", name, "--cache", "c", *of)
            assert told.code == 0, told.output
        told = pmmrec("data", "features", boutique, "--from", kept, "--name", "whole", "--cache", "c")
        assert told.code == 2
        assert "exists; choose another name" in told.output
        domain = Domain.open(boutique)
        whole = domain.feature("whole").read(np.arange(domain.num_items))
        expected = load(kept, cache="c", device="cpu").encode_items(domain).vectors_ND.cpu().numpy()
        np.testing.assert_array_equal(whole, expected)
        assert not np.array_equal(domain.feature("words").read(np.array([0])), whole[:1])
    assert verify_domain(boutique) == []


def test_an_option_without_effect_is_refused(boutique: Path, pmmrec: Pmmrec) -> None:
    told = pmmrec("data", "features", boutique, "--from", "v.npy", "--name", "v", "--vectors", "text")
    assert told.code == 2
    assert "--vectors: has no effect, v.npy holds the vectors; leave it out" in " ".join(told.output.split())
