"""The leakage report is that of plain loops over users, and of equal texts and pictures."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import Pmmrec
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.data.leakage import TargetLeakage, leakage_of
from pmmrec.data.splits import Split, SplitPart, split_of, splits
from pmmrec.errors import RecipeError

RULES = [
    {"type": "leave_one_out"},
    {"type": "ratio", "shares": [2, 1, 1], "seed": 1},
    {"type": "global_time", "validation": 0.2, "test": 0.2},
]


def loops(split: Split, part: SplitPart) -> TargetLeakage:
    """The report of one holdout by loops over users and their interactions."""
    rows = []  # user, item, time, is tied, part
    for stretch in split.stretches():
        parts = split.parts(stretch).tolist()
        for user in range(split.domain.num_users):
            items, times = split.domain.sequence(user).tolist(), split.domain.times(user).tolist()
            for place, (item, time) in enumerate(zip(items, times, strict=True)):
                is_tied = place > 0 and times[place - 1] == time
                rows.append((user, item, time, is_tied, parts[len(rows)]))
    train = [row for row in rows if row[4] == SplitPart.TRAIN]
    targets = [row for row in rows if row[4] == part]
    shares = [sum(other[2] > target[2] for other in train) / len(train) for target in targets]
    return TargetLeakage(
        holdout=part.name.lower(),
        num_targets=len(targets),
        num_users=len({target[0] for target in targets}),
        num_seen=sum(any(other[:2] == target[:2] for other in train) for target in targets),
        num_tied=sum(target[3] for target in targets),
        num_before_training=sum(
            any(other[0] != target[0] and other[2] > target[2] for other in train) for target in targets
        ),
        share_of_training_after=sum(shares) / len(shares),
    )


@pytest.mark.parametrize("rule", RULES, ids=[rule["type"] for rule in RULES])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_targets_are_counted_as_by_loops(make_domain: Callable[..., Domain], rule: dict, seed: int) -> None:
    draw = random.Random(seed)
    sequences = [draw.choices(range(5), k=draw.randint(3, 7)) for _ in range(9)] + [[0, 1, 2, 3, 4]]
    times = [sorted(draw.choices(range(40), k=len(items))) for items in sequences]
    split = split_of(splits.config(rule), make_domain(sequences, times=times))
    for found, part in zip(leakage_of(split).targets, (SplitPart.VALIDATION, SplitPart.TEST), strict=True):
        expected = loops(split, part)
        assert found.share_of_training_after == pytest.approx(expected.share_of_training_after, rel=1e-12)
        assert [*vars(found).values()][:-1] == [*vars(expected).values()][:-1]


def test_the_user_whose_training_ends_last_does_not_count_for_itself(make_domain: Callable[..., Domain]) -> None:
    domain = make_domain([[0, 1, 2], [0, 1, 2, 0]], times=[[1, 2, 3], [4, 8, 9, 10]])
    (_, test) = leakage_of(split_of(splits.config({"type": "leave_one_out"}), domain)).targets
    assert (test.num_targets, test.num_before_training) == (2, 1)


def made(folder: Path, texts: list[str], shades: list[int], log: list[tuple[str, str]], prefix: str = "") -> Domain:
    (folder / "pictures").mkdir(parents=True)
    ids = [f"{prefix}i{row}" for row in range(len(texts))]
    for item_id, shade in zip(ids, shades, strict=True):
        Image.new("RGB", (32, 32), (shade,) * 3).save(folder / "pictures" / f"{item_id}.png")
    items = {"item_id": ids, "text": texts}
    actions = {"user_id": [user for user, _ in log], "item_id": [prefix + item for _, item in log]}
    settings = {"images": folder / "pictures", "k_core": None, "name": folder.name}
    return Domain.from_tables(items, actions, out=folder / "domain", **settings)


def test_equal_users_items_and_shared_ones_are_counted(tmp_path: Path) -> None:
    log = [(user, item) for user in ("u", "v", "w") for item in ("i0", "i1")] + [("x", "i2"), ("y", "i2")]
    domain = made(tmp_path / "shop", ["red", "blue", "red", "hat"], [9, 9, 9, 7], log)
    source = made(tmp_path / "source", ["red", "x"], [7, 1], [("u", "i0"), ("z", "i1")])
    other = made(tmp_path / "other", ["y", "z"], [2, 3], [("q", "i0"), ("z", "i1")], prefix="other-")
    found = leakage_of(split_of(splits.config({"type": "leave_one_out"}), domain), (source, other))
    assert (found.users.num_equal, found.users.num_groups) == (3, 1)
    assert (found.texts.num_equal, found.texts.num_groups) == (2, 1)
    assert (found.images.num_equal, found.images.num_groups) == (3, 1)
    assert [(one.source, one.users, one.items, one.texts, one.images) for one in found.shared] == [
        ("source", 1, 2, 2, 1),
        ("other", 0, 0, 0, 0),
    ]
    assert [one.num_before_training for one in found.targets] == [None, None]
    assert Counter(one.num_targets for one in found.targets) == {0: 2}


def test_lists_are_no_split_of_sequences(make_domain: Callable[..., Domain]) -> None:
    split = split_of(splits.config({"type": "leave_one_out"}), make_domain([[0, 1, 2]]))
    split.ranks_lists = True
    with pytest.raises(RecipeError, match="its targets lie in lists"):
        leakage_of(split)


def test_the_report_is_printed_and_given_as_json(world: Path, pmmrec: Pmmrec) -> None:
    words = ["data", "check", world / "boutique", "--against", world / "bazaar", "--against", world / "gallery"]
    told = pmmrec(*words)
    assert told.code == 0, told.output
    assert "test: seen in training by the same user" in told.output
    assert "In common with sources" in told.output
    (found,) = json.loads(pmmrec(*words, "--split", "{type: ratio, by: time}", "--json").output)["domains"]
    assert (found["name"], found["split"], len(found["shared"])) == ("boutique", "ratio", 2)
