"""A run does not go on where the split or a feature that a domain stores has changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from attempts import Attempt, train

from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.data.importers.given_split import store_split
from pmmrec.data.splits.given import GivenConfig
from pmmrec.errors import RecipeError

Change = Callable[[Path], None]


@pytest.fixture
def attempt(tmp_path: Path, world: Path) -> Attempt:
    return partial(train, tmp_path, world)


def _give_split(domain: Path, last: str, before: str) -> None:
    """Store the split `given`: what the last item of each user and the one before it are for."""
    (domain / "splits" / "given.arrow").unlink(missing_ok=True)
    opened, table = Domain.open(domain), domain.with_suffix(".csv")
    rows = ["user_id,item_id,split"]
    for user, user_id in enumerate(opened.user_ids.to_pylist()):
        items = opened.item_ids.take(pa.array(opened.sequence(user))).to_pylist()
        words = [*["train"] * (len(items) - 2), before, last]
        rows += [f"{user_id},{item},{word}" for item, word in zip(items, words, strict=True)]
    table.write_text("\n".join(rows), encoding="utf-8")
    store_split(domain, table, "given")


def _give_feature(domain: Path, value: float) -> None:
    """Store the feature `clip` in a domain that has no other."""
    _without_features(domain)
    store_vectors(Domain.open(domain), np.full((Domain.open(domain).num_items, 2), value), "clip", "test")


def _without_features(domain: Path) -> None:
    told = json.loads((domain / "domain.json").read_text(encoding="utf-8"))
    (domain / "domain.json").write_text(json.dumps(told | {"features": {}}), encoding="utf-8")


@pytest.mark.parametrize(
    ("first", "other", "what"),
    [
        (
            partial(_give_split, last="test", before="validation"),
            partial(_give_split, last="validation", before="test"),
            "data.split",
        ),
        (partial(_give_feature, value=1.0), partial(_give_feature, value=2.0), "feature clip"),
        (partial(_give_feature, value=1.0), _without_features, "feature clip"),
    ],
    ids=["split", "feature", "feature that is gone"],
)
def test_what_a_domain_stores_for_a_run_may_not_change(
    attempt: Attempt, tmp_path: Path, world: Path, first: Change, other: Change, what: str
) -> None:
    domain = shutil.copytree(world / "boutique", tmp_path / "boutique")
    first(domain)
    rules: dict[str, Any] = {
        "domain": str(domain),
        "split": GivenConfig(name="given") if what == "data.split" else None,
    }
    attempt("cut", at_step=2, **rules)
    other(domain)
    with pytest.raises(RecipeError, match=rf"cut: cannot go on: {what} of domain boutique is not what the run began"):
        attempt("cut", resume=True, **rules)
    first(domain)
    attempt("cut", resume=True, **rules)
