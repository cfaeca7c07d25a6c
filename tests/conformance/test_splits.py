"""What every registered split must do: a new split needs one line in EXAMPLES and inherits the rest."""

from __future__ import annotations

import pickle
import random
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from examples import example_of

from pmmrec.data.batches import DataConfig
from pmmrec.data.domain import Domain
from pmmrec.data.importers.given_split import store_split
from pmmrec.data.importers.impressions import store_impressions
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.splits import HELD_OUT, HoldoutName, Split, SplitPart, split_of, splits
from pmmrec.settings import validate

EXAMPLES: dict[str, list[dict[str, Any]]] = {
    "leave_one_out": [{}],
    "ratio": [{}, {"by": "time", "shares": [6, 2, 2]}, {"test_history": "train", "seed": 3}],
    "global_time": [{"validation": 0.2, "test": 0.2}],
    "given": [{"name": "drawn"}],
    "impressions": [{"name": "shown"}],
}
ALL = [{"type": name, **settings} for name, examples in EXAMPLES.items() for settings in examples]
OF_PARTS = [tree for tree in ALL if not splits[tree["type"]].part_class.ranks_lists]  # `parts` says what is held out
NAMES: tuple[HoldoutName, ...] = get_args(HoldoutName)

every_split = pytest.mark.parametrize("tree", ALL, ids=str)
every_split_of_parts = pytest.mark.parametrize("tree", OF_PARTS, ids=str)


@pytest.fixture(scope="module")
def domain(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """Forty users with one to thirty interactions, with times and a given split; items repeat."""
    folder, draw = tmp_path_factory.mktemp("splits"), random.Random(8)
    log = []
    for user in range(40):
        start, length = draw.randint(0, 400), draw.randint(1, 30)
        log += [(f"u{user}", f"i{draw.randint(0, 30)}", start + draw.randint(0, 400)) for _ in range(length)]
    users, items, times = zip(*log, strict=True)
    titles = [f"title {row}" for row in range(31)]
    pq.write_table(pa.table({"item_id": [f"i{row}" for row in range(31)], "text": titles}), folder / "items.parquet")
    done = {"user_id": users, "item_id": items}
    pq.write_table(pa.table({**done, "timestamp": times}), folder / "log.parquet")
    words = draw.choices(["train", "validation", "test"], weights=[6, 2, 2], k=len(log))
    pq.write_table(pa.table({**done, "split": words}), folder / "parts.parquet")
    plan = {"items": folder / "items.parquet", "interactions": folder / "log.parquet", "k_core": None}
    made = import_table(TableImport.model_validate({**plan, "name": "shop", "out": folder / "shop"}))
    store_split(made.folder, folder / "parts.parquet", "drawn")
    lists = [(f"l{n}", f"u{draw.randint(0, 39)}", draw.choice(["validation", "test"])) for n in range(60)]
    rows = [
        (*of_list, f"i{item}", place < 2) for of_list in lists for place, item in enumerate(draw.sample(range(31), 7))
    ]
    names = ("impression_id", "user_id", "split", "item_id", "clicked")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    pq.write_table(
        pa.table({**columns, "clicked": [str(int(one)) for one in columns["clicked"]]}), folder / "s.parquet"
    )
    store_impressions(made.folder, folder / "s.parquet", "shown")
    return made


@pytest.fixture
def split(domain: Domain, tree: dict[str, Any]) -> Split:
    return split_of(splits.config(tree), domain)


def parts_of(split: Split) -> list[list[int]]:
    """The part of each interaction, user by user."""
    return [
        split.parts(stretch)[stretch.offset_B[place] : stretch.offset_B[place + 1]].tolist()
        for stretch in split.stretches()
        for place in range(len(stretch.offset_B) - 1)
    ]


@every_split
def test_every_registered_split_has_an_example(tree: dict[str, Any]) -> None:
    assert {entry.name for entry in splits} == set(EXAMPLES)
    assert tree["type"] in EXAMPLES


@every_split
def test_settings_survive_a_recipe(tree: dict[str, Any]) -> None:
    config = validate(DataConfig, {"split": tree}, "data")
    again = validate(DataConfig, config.model_dump(mode="json"), "data")
    assert again == config
    assert type(again.split) is splits[tree["type"]].config_class


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_its_docstring_splits(domain: Domain, name: str) -> None:
    config = validate(DataConfig, example_of(splits[name].part_class)["data"], "data")
    assert type(split_of(config.split, domain)) is splits[name].part_class


@every_split
def test_users_alone_in_stretches_and_in_memory_have_the_same_training_items(split: Split) -> None:
    users = range(split.domain.num_users)
    alone = [split.train(user).tolist() for user in users]
    parts = parts_of(split)
    assert alone == [
        [item for item, part in zip(split.domain.sequence(user).tolist(), parts[user], strict=True) if part == 0]
        for user in users
    ]
    lengths = [len(items) for items in alone]
    assert [split.train_length(user) for user in users] == lengths
    assert np.concatenate([found for _, found in split.train_lengths()]).tolist() == lengths
    assert np.diff(split.train_offsets).tolist() == lengths
    flat = [item for items in alone for item in items]
    assert split.train_items.tolist() == flat
    assert split.train_counts.tolist() == np.bincount(flat, minlength=split.domain.num_items).tolist()
    held_out = np.concatenate(list(split.held_out())).tolist()
    assert held_out == [part != 0 for of_user in parts for part in of_user]


@every_split_of_parts
@pytest.mark.parametrize("name", NAMES)
def test_holdouts_hold_what_the_parts_say(split: Split, name: HoldoutName) -> None:
    holdout, parts = split.holdout(name), parts_of(split)
    assert holdout.num_queries > 10
    assert (np.diff(holdout.user_index) > 0).all()
    assert not set(holdout.user_index.tolist()) & set(holdout.without_history.tolist())
    queries = {int(user): place for place, user in enumerate(holdout.user_index)}
    for user, of_user in enumerate(parts):
        done = list(zip(split.domain.sequence(user).tolist(), of_user, strict=True))
        targets = list(dict.fromkeys(item for item, part in done if part == HELD_OUT[name]))
        history = [item for item, part in done if SplitPart(part) in split.knows(name)]
        assert (user in queries) == bool(targets and history)
        assert (user in holdout.without_history) == bool(targets and not history)
        if user in queries:
            assert holdout.targets(queries[user]).tolist() == targets
            assert holdout.history(queries[user]).tolist() == history


@every_split
@pytest.mark.parametrize("name", NAMES)
def test_a_query_never_knows_its_own_part(split: Split, name: HoldoutName) -> None:
    assert HELD_OUT[name] not in split.knows(name)
    assert SplitPart.TEST not in split.knows(name)


@every_split_of_parts
@pytest.mark.parametrize("name", NAMES)
def test_some_users_are_always_the_same_and_have_what_they_have_among_all(split: Split, name: HoldoutName) -> None:
    some, again, whole = split.holdout(name, 6), split.holdout(name, 6), split.holdout(name)
    assert some.user_index.tolist() == again.user_index.tolist()
    assert some.num_queries == 6
    for place, user in enumerate(some.user_index.tolist()):
        query = whole.user_index.tolist().index(user)
        assert some.targets(place).tolist() == whole.targets(query).tolist()
        assert some.history(place).tolist() == whole.history(query).tolist()


@every_split
def test_another_process_splits_alike(split: Split) -> None:
    before, other = parts_of(split), pickle.loads(pickle.dumps(split))  # noqa: S301 - as worker processes get it
    assert parts_of(other) == before


@every_split_of_parts
def test_no_part_is_empty(split: Split) -> None:
    assert {part for of_user in parts_of(split) for part in of_user} == {0, 1, 2}


@every_split
@pytest.mark.parametrize("name", NAMES)
def test_every_query_has_a_history_and_different_targets_among_its_candidates(split: Split, name: HoldoutName) -> None:
    holdout = split.holdout(name)
    assert holdout.num_queries > 10
    assert (np.diff(holdout.user_index) >= 0).all()
    assert (holdout.candidates is not None) == split.ranks_lists
    for query in range(holdout.num_queries):
        targets = holdout.targets(query).tolist()
        assert len(holdout.history(query)) > 0 < len(targets) == len(set(targets))
        if holdout.candidates is not None and holdout.candidate_offsets is not None:
            offsets = holdout.candidate_offsets
            assert set(targets) < set(holdout.candidates[offsets[query] : offsets[query + 1]].tolist())
