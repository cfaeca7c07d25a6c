"""A plan is read, or every mistake in it is reported with its place."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pmmrec.errors import RecipeError
from pmmrec.shipped import shipped_root
from tests.real.evidence.identity import Identities
from tests.real.evidence.plan import BaselinesCell, EvidencePlan
from tests.real.evidence.read_plan import read_plan

Tree = dict[str, Any]
ORDER: Tree = {"paper": "P", "table": "t", "domains": ["films_b"], "systems": ["full", "ids"]}
PICTURE: Tree = {
    "title": "P",
    "axis": "users",
    "domain": "films_b",
    "tables": {1: "t", 2: "t"},
    "systems": {"by ids": "ids"},
}
TREE: Tree = {
    "title": "Results",
    "tunings": {"none": "not tuned"},
    "domains": {
        "films_a": {"folder": "films", "cut": {"salt": "s", "half": "a"}},
        "films_b": {"folder": "films", "cut": {"salt": "s", "half": "b"}},
        "shop": {"folder": "shop"},
    },
    "pretrainings": {"both": {"recipe": "pretrain/tiny", "sources": ["films_a", "shop"]}},
    "cells": {
        "t/films_b/baselines": {"kind": "baselines"},
        "t/films_b/ids": {
            "kind": "finetune",
            "recipe": "zoo/ids/small/sasrec_in_batch",
            "from": "none",
            "tuning": "none",
        },
        "t/films_b/full": {"kind": "finetune", "recipe": "finetune/full", "from": "both", "tuning": "none"},
        "t/films_b/unseen": {"kind": "zero_shot", "from": "both", "tuning": "none"},
        "u/films_b/base": {"same_as": "t/films_b/ids"},
    },
    "differences": [
        {"a": "t/films_b/full", "b": "u/films_b/base"},
        {"a": "t/films_b/ids", "b": "t/films_b/baselines@item-knn"},
    ],
    "tables": {
        "t": {"title": "T", "rows": [{"cell": "t/films_b/baselines"}, {"cell": "u/films_b/base", "label": "ids"}]}
    },
}


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Tree], EvidencePlan]:
    def read(tree: Tree) -> EvidencePlan:
        (tmp_path / "plan.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        return read_plan(tmp_path / "plan.yaml")

    return read


def changed(path: str, value: object) -> Tree:
    """The plan with one value replaced; None removes the key."""
    tree = copy.deepcopy(TREE)
    *above, last = path.split(".")
    place: Any = tree
    for key in above:
        place = place[int(key) if key.isdigit() else key]
    if value is None:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return tree


def test_strata_are_of_users_with_one_target(read: Callable[[Tree], EvidencePlan]) -> None:
    tree = changed("tables.t.stratum", "cold")
    read(tree)
    with pytest.raises(RecipeError, match=r"tables\.t\.stratum: cold is for splits that hold out one item of a user"):
        read({**tree, "split": {"type": "ratio"}})


def test_a_plan_is_read(read: Callable[[Tree], EvidencePlan]) -> None:
    plan = read(TREE)
    assert list(plan.measured) == ["t/films_b/baselines", "t/films_b/ids", "t/films_b/full", "t/films_b/unseen"]
    assert plan.resolve("u/films_b/base") == ("t/films_b/ids", "model")
    assert plan.resolve("t/films_b/baselines@item-knn") == ("t/films_b/baselines", "item-knn")
    assert plan.tuning_of("t/films_b/full") == "not tuned"
    assert plan.tuning_of("t/films_b/baselines") == ""
    assert plan.domains_of("t/films_b/full") == ("films_b", "films_a", "shop")
    assert plan.measured["t/films_b/ids"].seeds == (1, 2, 3)  # type: ignore[union-attr]  # it is a fine-tuning


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("titles", "x", "titles: unknown key; did you mean 'title'?"),
        ("title", None, "title: field required"),
        ("domains.shop", {"folder": "shop", "kcore": 5}, "domains.shop.kcore: unknown key; did you mean 'k_core'?"),
        ("domains.shop", {"folder": "shop", "cut": {"salt": "s", "half": "c"}}, r"domains.shop.cut.half: .*'a' or 'b'"),
        ("domains.shop", {"folder": "shop", "cut": {"salt": "s", "half": "a", "share": 1}}, "domains.shop.cut.share: "),
        ("domains.Shop", {"folder": "x"}, "domains.*Shop"),
        (
            "domains.shop",
            {"folder": "shop", "text_codes": "codes"},
            "domains.shop: text_codes: are made of text_vectors",
        ),
        (
            "domains.shop",
            {"folder": "shop", "image_vectors": "image_content"},
            "domains.shop: image_vectors: are made of images",
        ),
        ("tables.t.tests", "recall", "tables.t.tests: 'recall' is no metric; did you mean 'recall@"),
        ("split", {"type": "ratios"}, "split.*ratio"),
        ("domains.films_c", TREE["domains"]["films_a"], "domains.films_c: the same as 'films_a'"),
        ("pretrainings.both.sources", ["shoe"], "pretrainings.both.sources: no domain 'shoe'; did you mean 'shop'?"),
        ("pretrainings.both.judged_by", "shoe", "pretrainings.both.judged_by: no domain 'shoe'; did you mean 'shop'?"),
        ("pretrainings.both.judged_by", "shop", "pretrainings.both.judged_by: 'shop' is a source"),
        ("pretrainings.none", TREE["pretrainings"]["both"], "pretrainings.none: 'none' means from scratch"),
        (
            "cells.t/films_b/ids.kind",
            "train",
            "cells.t/films_b/ids: must have kind: baselines, tuned_baselines, finetune or zero_shot",
        ),
        ("cells.t/films_b/ids.recipe", None, "cells.t/films_b/ids.recipe: field required"),
        ("cells.t/films_b/ids.tuning", None, "cells.t/films_b/ids.tuning: field required"),
        ("cells.t/films_b/ids.tuning", "nine", "cells.t/films_b/ids.tuning: no tuning 'nine'; did you mean 'none'?"),
        ("cells.t/films_b/ids.tuning", "20 short trials", "cells.t/films_b/ids.tuning: "),
        ("tunings.none", "", "tunings.none: "),
        ("cells.t/films_b/ids.from", None, "cells.t/films_b/ids.from: field required"),
        ("cells.t/films_b/ids.epochs", 3, "cells.t/films_b/ids.epochs: unknown key"),
        ("cells.t/films_b/ids.seeds", [1, 1], "cells.t/films_b/ids.seeds: .*repeats a seed"),
        ("cells.t/films_b/ids.seeds", [], "cells.t/films_b/ids.seeds: "),
        ("cells.t/films_b/ids.users", 0, "cells.t/films_b/ids.users: "),
        ("cells.t/films_b/baselines.users", 9, "cells.t/films_b/baselines.baselines: users and seeds: go together"),
        (
            "cells.t/films_b/tuned",
            {"kind": "tuned_baselines", "users": 9, "seeds": [1]},
            "cells.t/films_b/tuned.tuned_baselines: users: have no effect on tuned baselines",
        ),
        (
            "cells.t/films_b/unseen",
            {"kind": "zero_shot", "from": "both", "tuning": "none", "blend": True, "popularity": 1},
            "cells.t/films_b/unseen.zero_shot: popularity: has no effect with blend",
        ),
        ("targets", "train", "targets: .*'validation'"),
        ("cells.t/films_b/ids.search", "nine", "cells.t/films_b/ids.search: no search 'nine'; there are: none"),
        ("cells.t/films_b/ids.weights", {"tuned": "nine/text_encoder"}, "ids.weights: no pretraining 'nine'"),
        ("searches", {"few": {"space": "small.yaml", "trials": 0}}, "searches.few.trials: "),
        (
            "searches",
            {"few": {"domain": "shoe", "space": "small.yaml", "trials": 1}},
            "searches.few.domain: no domain 'shoe'; did you mean 'shop'?",
        ),
        ("orderings", [ORDER | {"systems": ["ids"]}], r"orderings\[0\].systems: needs 2 or more"),
        ("orderings", [ORDER | {"systems": ["ids", "ids"]}], r"orderings\[0\]: both sides are the same"),
        ("orderings", [ORDER | {"domains": ["shop"]}], r"orderings\[0\].a: no cell 't/shop/full'"),
        ("orderings", [ORDER], r"orderings\[0\]: t/films_b/full stands in no table, so it has no label"),
        ("orderings", [ORDER | {"metric": "hr"}], r"orderings\[0\].metric: 'hr' is no metric"),
        (
            "pictures",
            {"grown": PICTURE | {"systems": {"full": "fool"}}},
            r"pictures.grown.systems.full: no cell 't/films_b/fool'",
        ),
        (
            "pictures",
            {"grown": PICTURE | {"systems": {"all": "baselines"}}},
            "systems.all: .*holds several baselines; name one",
        ),
        ("pictures", {"grown": PICTURE | {"metric": "hr"}}, "pictures.grown.metric: 'hr' is no metric"),
        ("pictures", {"grown": PICTURE | {"tables": {0: "t", 5: "u"}}}, "pictures.grown.tables: sizes are above 0"),
        ("pictures", {"grown": PICTURE | {"tables": {1: "t"}}}, "pictures.grown.tables: needs 2 or more"),
        ("pictures", {"t": PICTURE}, "pictures.t: a table is called so too"),
        ("cells.t/films_b/full.from", "bath", "cells.t/films_b/full.from: no pretraining 'bath'; did you mean 'both'?"),
        ("cells.t/films_b/unseen.from", "none", "cells.t/films_b/unseen.from: zero-shot needs a pretraining"),
        ("cells.t/films/baselines", {"kind": "baselines"}, "cells.t/films/baselines: no domain 'films'; did you mean"),
        ("cells.t/films_b", {"kind": "baselines"}, "cells.*t/films_b"),
        (
            "cells.u/films_b/base.same_as",
            "t/films_b/id",
            "base.same_as: no cell 't/films_b/id'; did you mean 't/films_b/ids'",
        ),
        ("cells.u/films_b/other", {"same_as": "u/films_b/base"}, "other.same_as: 'u/films_b/base' is itself an alias"),
        (
            "cells.u/shop/base",
            {"same_as": "t/films_b/ids"},
            "u/shop/base.same_as: 't/films_b/ids' has another domain",
        ),
        ("domains.films_b.cut.half", "a", "cells.t/films_b/full.from: 'both' has seen users of 'films_b' in 'films_a'"),
        ("domains.films_b.cut.salt", "t", "cells.t/films_b/unseen.from: 'both' has seen users of 'films_b'"),
        ("domains.films_b.cut", None, "cells.t/films_b/full.from: 'both' has seen users of 'films_b'"),
        ("differences.0.a", "t/films_b/fool", r"differences\[0\].a: no cell 't/films_b/fool'; did you mean"),
        ("differences.1.b", "t/films_b/baselines", r"differences\[1\].b: .*holds several baselines; name one"),
        ("differences.1.b", "t/films_b/baselines@knn", r"differences\[1\].b: no baseline 'knn'; .*item-knn"),
        ("differences.1.b", "t/films_b/full@random", r"differences\[1\].b: 't/films_b/full' holds one system"),
        ("differences.0.a", "t/films_b/ids", r"differences\[0\]: both sides are the same measurement"),
        ("cells.t/films_b/full.seeds", [4, 5], r"differences\[0\]: seeds \[4, 5\] and \[1, 2, 3\]"),
        (
            "tables.t.rows.0.cell",
            "t/films_b/flors",
            r"tables.t.rows\[0\].cell: no cell 't/films_b/flors'; did you mean",
        ),
        ("tables.t.rows.0.label", "x", r"tables.t.rows\[0\].label: each baseline has a label of its own"),
        ("tables.t.rows.1.label", None, r"tables.t.rows\[1\].label: missing"),
        ("tables.t.columns", ["hr@11"], r"tables.t.columns\[0\]: 'hr@11' is not a column; did you mean 'hr@10'?"),
        ("tables.t.stratum", "warm", "tables.t.stratum: .*'cold'"),
        ("tables.t.include", "words.md", "tables.t.include: no file .*words.md"),
        ("include", "words.md", "include: no file .*words.md"),
    ],
)
def test_a_mistake_is_reported_with_its_place(
    read: Callable[[Tree], EvidencePlan], path: str, value: object, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        read(changed(path, value))


def test_all_mistakes_are_reported_at_once(read: Callable[[Tree], EvidencePlan]) -> None:
    tree = changed("differences.0.a", "t/films_b/fool")
    tree["cells"]["t/films_b/full"]["from"] = "bath"
    tree["tables"]["t"]["rows"][1]["cell"] = "nowhere"
    with pytest.raises(RecipeError) as told:
        read(tree)
    lines = str(told.value).splitlines()
    assert lines[0].endswith("plan.yaml: 3 problems")
    assert [line.split(":")[0].strip() for line in lines[1:]] == [
        "cells.t/films_b/full.from",
        "tables.t.rows[1].cell",
        "differences[0].a",
    ]


@pytest.fixture(scope="module", params=["evidence", "evidence_systems", "evidence_transfer"])
def shipped(request: pytest.FixtureRequest) -> EvidencePlan:
    return read_plan(shipped_root() / "zoo" / f"{request.param}.yaml")


@pytest.fixture(scope="module")
def identities(shipped: EvidencePlan) -> Identities:
    return Identities(shipped, {name: f"as if of {name}" for name in shipped.domains})


def test_the_shipped_plan_and_every_recipe_in_it_are_valid(shipped: EvidencePlan, identities: Identities) -> None:
    assert len({identities.cell(cell_id).hash for cell_id in shipped.measured}) > 20


def test_no_two_cells_of_the_shipped_plan_measure_the_same(shipped: EvidencePlan, identities: Identities) -> None:
    """An override without effect would make an ablation row equal to its base."""
    cells: dict[str, list[str]] = {}
    for cell_id in shipped.measured:
        cells.setdefault(identities.cell(cell_id).hash, []).append(cell_id)
    assert [same for same in cells.values() if len(same) > 1] == []


def test_what_the_shipped_plan_compares_differs_in_the_recipe_the_domain_or_the_start(
    shipped: EvidencePlan, identities: Identities
) -> None:
    for planned in shipped.differences:
        (a, system_a), (b, system_b) = shipped.resolve(planned.a), shipped.resolve(planned.b)
        changes = identities.cell(a).changes_since(identities.cell(b).tree)
        assert changes or (a == b and system_a != system_b), f"{planned.a} - {planned.b}"


def test_every_tuning_of_the_shipped_plan_is_used(shipped: EvidencePlan) -> None:
    named = {cell.tuning for cell in shipped.measured.values() if not isinstance(cell, BaselinesCell)}
    assert set(shipped.tunings) == named
