"""An exported index is complete, sufficient for a service, and as good as its stated recall."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from command_line import Pmmrec

import pmmrec as api
from pmmrec.context import BuildContext
from pmmrec.contracts import ItemVectors, Nodes, Query
from pmmrec.data.domain import Domain
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.errors import CheckpointError, DataError, MachineError, RecipeError
from pmmrec.models import Scorer
from pmmrec.models.dot import Dot, DotConfig
from pmmrec.propagations import Propagation
from pmmrec.serving import export, load_index
from pmmrec.serving.export import Exported, kind_for
from pmmrec.serving.search import IndexSearch
from pmmrec.system import System


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def system(small_run: Path, cache: Path) -> System:
    return api.load("small", hub=small_run / "hub", cache=cache, device="cpu")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, small_run: Path, world: Path, cache: Path) -> Path:
    """A flat index of `boutique` with popularity."""
    out = tmp_path_factory.mktemp("index") / "flat"
    popular = api.load("small", hub=small_run / "hub", cache=cache, device="cpu", popularity=0.7)
    popular.index(world / "boutique", out, kind="flat", num_users=20)
    return out


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "copy"))


def histories(world: Path, name: str = "boutique") -> list[list[str]]:
    domain = Domain.open(world / name)
    return [[domain.item_ids[int(row)].as_py() for row in domain.sequence(user)] for user in range(domain.num_users)]


@pytest.mark.parametrize("popularity", [None, 0.7])
@pytest.mark.parametrize("seen", ["exclude", "include"])
def test_an_exact_index_recommends_what_the_model_does(
    small_run: Path, world: Path, cache: Path, tmp_path: Path, popularity: float | None, seen: str
) -> None:
    system = api.load("small", hub=small_run / "hub", cache=cache, device="cpu", popularity=popularity)
    told = system.index(world / "boutique", tmp_path / "index")
    assert (told.kind, told.tried[-1].recall) == ("flat", 1.0)
    index = load_index(tmp_path / "index")
    system.encode_items(world / "boutique")
    for history in histories(world):
        wanted, found = (some.recommend(history, 8, seen=seen) for some in (system, index))
        assert [one for _, one in found] == pytest.approx([one for _, one in wanted], rel=1e-5, abs=1e-5)
        assert len({item for item, _ in wanted} & {item for item, _ in found}) >= 7  # near ties may trade places
        assert len({item for item, _ in found}) == 8


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
@pytest.mark.parametrize("popularity", [0.0, 0.7])
def test_an_index_of_a_model_that_compares_by_cosine_gives_its_scores(
    system: System, world: Path, tmp_path: Path, kind: str, popularity: float
) -> None:
    system.encode_items(world / "boutique")
    context = BuildContext(16)
    system._recommender.scorer = Dot(DotConfig(similarity="cosine", popularity=popularity), context)
    system.index(world / "boutique", tmp_path / "index", kind=kind, num_users=20)
    index = load_index(tmp_path / "index")
    system.encode_items(world / "boutique")
    system._recommender.scorer = Dot(DotConfig(similarity="cosine", popularity=popularity), context)
    for history in histories(world)[:10]:
        wanted, found = dict(system.recommend(history, 36)), dict(index.recommend(history, 8))
        assert found == {item: pytest.approx(wanted[item], rel=1e-5, abs=1e-5) for item in found}
        assert all(abs(score) <= 1 + 1e-6 for score in wanted.values()) or popularity


@pytest.fixture(scope="module")
def shirts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A domain of 60 items, of which the last 40 have equal titles; every user has seen some of them."""
    folder = tmp_path_factory.mktemp("shirts")
    titles = {f"i{row:02d}": "plain shirt" if row >= 20 else f"shoe number {row} blue" for row in range(60)}
    items = ["item_id,text", *(f"{item},{title}" for item, title in titles.items())]
    seen = [(f"u{user}", f"i{(7 * user + 11 * step) % 60:02d}", step) for user in range(20) for step in range(6)]
    rows = ["user_id,item_id,timestamp", *(",".join(map(str, row)) for row in seen)]
    (folder / "items.csv").write_text("\n".join(items))
    (folder / "interactions.csv").write_text("\n".join(rows))
    tables = {"items": folder / "items.csv", "interactions": folder / "interactions.csv"}
    import_table(TableImport(**tables, name="shirts", out=folder / "shirts", k_core=None))
    return folder / "shirts"


@pytest.mark.parametrize("popularity", [None, 0.7])
@pytest.mark.parametrize("kind", ["flat", "ivf", "hnsw"])
def test_items_with_equal_scores_are_ordered_by_row_in_every_list(
    small_run: Path, shirts: Path, cache: Path, tmp_path: Path, kind: str, popularity: float | None
) -> None:
    system = api.load("small", hub=small_run / "hub", cache=cache, device="cpu", popularity=popularity)
    told = system.index(shirts, tmp_path / "index", kind=kind, k=60, num_users=5)
    index = load_index(tmp_path / "index")
    system.encode_items(shirts)
    for history in histories(shirts.parent, "shirts")[:4]:
        for seen in ("exclude", "include"):
            whole = {name: some.recommend(history, 60, seen=seen) for name, some in (("s", system), ("i", index))}
            if told.tried[-1].recall == 1:
                assert [item for item, _ in whole["i"]] == [item for item, _ in whole["s"]]
            for k in (1, 20, 22, 25, 40, 59):
                assert [item for item, _ in system.recommend(history, k, seen=seen)] == [i for i, _ in whole["s"]][:k]
                assert index.recommend(history, k, seen=seen) == whole["i"][:k]


def test_lists_on_disk_have_the_same_order(small_run: Path, shirts: Path, cache: Path, tmp_path: Path) -> None:
    system = api.load("small", hub=small_run / "hub", cache=cache, device="cpu")
    system.score(shirts, 25, tmp_path / "lists.parquet")
    lists = pq.read_table(tmp_path / "lists.parquet")
    system.encode_items(shirts)
    for user, history in enumerate(histories(shirts.parent, "shirts")):
        of_user = lists["item_id"].to_pylist()[25 * user : 25 * (user + 1)]
        assert of_user == [item for item, _ in system.recommend(history, 25)]


def test_the_key_of_an_item_times_the_query_of_a_user_is_the_score(
    whole: Path, small_run: Path, world: Path, cache: Path
) -> None:
    system = api.load("small", hub=small_run / "hub", cache=cache, device="cpu", popularity=0.7)
    items, index = system.encode_items(world / "boutique"), load_index(whole)
    table = pq.read_table(whole / "items.parquet")
    assert table.column_names == ["item_id", "vector", "key", "is_candidate"]
    assert table["item_id"].to_pylist() == items.item_ids
    history = histories(world)[0]
    score_of = dict(system.recommend(history, len(items.item_ids), seen="include"))
    query = index.encode_user(history)
    assert query.shape == (17,)
    for item_id, key in zip(table["item_id"].to_pylist(), table["key"].to_pylist(), strict=True):
        assert float(np.dot(query, np.array(key))) == pytest.approx(score_of[item_id], rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_other_kinds_report_their_recall(kind: str, system: System, world: Path, tmp_path: Path) -> None:
    told = system.index(world / "boutique", tmp_path / "index", kind=kind, k=5, num_users=30, seed=3)
    assert told.num_users == 30
    index = load_index(tmp_path / "index")
    assert index.info.effort == told.tried[-1].effort
    assert index.info.provenance["recall@5"] == told.tried[-1].recall >= export.GOOD_RECALL
    assert told.lines()[0].startswith(f"recall@5 of {kind} at ")
    assert len(index.recommend(histories(world)[0], 5)) == 5


@pytest.mark.parametrize("kind", ["hnsw", "ivf"])
def test_an_index_by_lists_or_graph_gives_the_scores_of_the_exact_one(
    kind: str, small_run: Path, world: Path, cache: Path, tmp_path: Path, whole: Path
) -> None:
    popular = api.load("small", hub=small_run / "hub", cache=cache, device="cpu", popularity=0.7)
    popular.index(world / "boutique", tmp_path / "index", kind=kind, num_users=20)
    index, exact = load_index(tmp_path / "index"), load_index(whole)
    assert (index.info.num_more, index.info.num_even, exact.info.num_even) == (1, 1, 0)
    for history in histories(world)[:20]:
        wanted = dict(exact.recommend(history, 36))
        found = dict(index.recommend(history, 8))
        assert found == {item: pytest.approx(wanted[item], rel=1e-5, abs=1e-5) for item in found}
        assert index.encode_user(history)[-1] == 0
    keys = np.stack(pq.read_table(tmp_path / "index" / "items.parquet")["key"].to_numpy())
    np.testing.assert_allclose(np.linalg.norm(keys, axis=1), np.linalg.norm(keys, axis=1).max(), rtol=1e-6)


def test_items_with_different_norms_are_all_found() -> None:
    """By inner product, a graph or lists favour long keys: see `equally_long`."""
    generator = np.random.default_rng(0)
    directions = generator.normal(size=(2000, 24)) / 5 + generator.normal(size=24)
    lengths = 1 + generator.exponential(size=(2000, 1))
    keys = torch.from_numpy((directions * lengths / np.linalg.norm(directions, axis=1, keepdims=True)).astype("f4"))
    queries = torch.from_numpy(generator.normal(size=(200, 24)).astype("f4"))
    even, padded = export.equally_long(keys), torch.nn.functional.pad(queries, (0, 1))
    torch.testing.assert_close(padded @ even.T, queries @ keys.T, rtol=0, atol=1e-5)
    for kind in ("hnsw", "ivf"):
        best = [
            list(export._recalls(export._built(kind, some.numpy()), kind, asked, some, np.arange(2000), 10))
            for some, asked in ((keys, queries), (even, padded))
        ]
        assert best[1][-1].recall >= export.GOOD_RECALL
        assert best[1][0].recall > best[0][0].recall + 0.1


def test_a_model_that_has_diverged_has_no_index(system: System, world: Path, tmp_path: Path) -> None:
    system.encode_items(world / "boutique")
    with torch.no_grad():
        next(system._recommender.user_encoder.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="boutique: scores of its users reach nan; they must be finite"):
        system.index(world / "boutique", tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_an_index_of_an_older_version_is_read(copy: Path, whole: Path, world: Path) -> None:
    tree = json.loads((copy / "index.json").read_text())
    assert (tree.pop("num_even"), tree.pop("unit_states")) == (0, False)
    (copy / "index.json").write_text(json.dumps(tree))
    history = histories(world)[0]
    assert load_index(copy).recommend(history) == load_index(whole).recommend(history)


def test_the_effort_of_a_poor_index_rises_until_recall_is_good() -> None:
    generator = np.random.default_rng(0)
    keys = torch.from_numpy(generator.normal(size=(4000, 24)).astype(np.float32))
    queries = torch.from_numpy(generator.normal(size=(50, 24)).astype(np.float32))
    index = export._built("ivf", keys.numpy())
    tried = list(export._recalls(index, "ivf", queries, keys, np.arange(4000), 10))
    assert [one.effort for one in tried] == list(export.EFFORTS["ivf"][: len(tried)])
    assert tried[0].recall < tried[-1].recall
    assert all(one.recall < export.GOOD_RECALL for one in tried[:-1])
    exact = (queries @ keys.T).topk(10, dim=1).indices.numpy()
    for one in tried:
        found, _ = IndexSearch.of(index, "ivf", one.effort, keys.numpy()).best(queries.numpy(), 10)
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)]
        assert one.recall == pytest.approx(np.mean(shares))


def test_equal_items_count_as_found() -> None:
    alike_C = np.array([0, 1, 0, 3, 0])
    assert export._shared(alike_C, np.array([0, 1]), np.array([4, 1])) == 1
    assert export._shared(alike_C, np.array([0, 2]), np.array([4, 1])) == 0.5
    assert export._shared(alike_C, np.array([0, 1]), np.array([3, -1])) == 0


def test_the_number_of_items_chooses_the_default_kind() -> None:
    assert [kind_for(count) for count in (1, 200_000, 200_001, 2_000_000, 2_000_001)] == [
        "flat",
        "flat",
        "hnsw",
        "hnsw",
        "ivf",
    ]


def test_a_poor_index_is_a_warning() -> None:
    told = Exported(Path("x"), "ivf", 10, 100, 5, (export.Recall(512, 0.98),))
    assert told.is_poor
    assert not Exported(Path("x"), "ivf", 10, 100, 5, (export.Recall(512, 0.99),)).is_poor


def test_invalid_queries_are_refused(whole: Path, world: Path) -> None:
    index, history = load_index(whole), histories(world)[0]
    with pytest.raises(RecipeError, match="history: is empty"):
        index.recommend([])
    with pytest.raises(DataError, match="'nothing' is not an item of this index"):
        index.recommend([*history, "nothing"])
    with pytest.raises(DataError, match="7 is not an item"):
        index.recommend([7])
    with pytest.raises(RecipeError, match="k: 37 items cannot be recommended from a catalogue of 36"):
        index.recommend(history, 37)
    with pytest.raises(RecipeError, match="seen: 'never' is not a rule"):
        index.recommend(history, seen="never")
    assert len(index.recommend(history, 36)) == 36 - len(set(history))


@pytest.mark.parametrize(
    "name", ["items.parquet", "items.faiss", "user_encoder/part.safetensors", "user_encoder/part.json"]
)
def test_a_changed_or_missing_file_is_named(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=f"{name} was changed after it was written"):
        load_index(copy)
    (copy / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} is missing"):
        load_index(copy)


def test_a_folder_that_is_not_an_index_is_an_error(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"not an index: it holds no index\.json"):
        load_index(tmp_path)
    tree = json.loads((copy / "index.json").read_text())
    for other, words in (({"format": 2}, "format 2 is not known"), ({"kind": "magic"}, "kind")):
        (copy / "index.json").write_text(json.dumps({**tree, **other}))
        with pytest.raises(CheckpointError, match=words):
            load_index(copy)


def test_a_service_only_needs_the_folder(copy: Path, whole: Path, world: Path) -> None:
    history = histories(world)[0]
    assert load_index(copy).recommend(history) == load_index(whole).recommend(history)
    assert sorted(path.name for path in whole.iterdir()) == [
        "index.json",
        "items.faiss",
        "items.parquet",
        "user_encoder",
    ]


def test_without_faiss_the_error_names_the_package(
    system: System, world: Path, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    for ask in (lambda: system.index(world / "boutique", tmp_path / "index"), lambda: load_index(whole)):
        with pytest.raises(MachineError, match=r"faiss-cpu is not installed; pip install -e '\.\[index\]'"):
            ask()
    assert not list(tmp_path.iterdir())


class Mirrored(Propagation):
    """Turns the vector of each item around; no graph of users is read."""

    def forward(self, nodes: Nodes) -> Nodes:
        return Nodes(replace(nodes.items, fused_UD=nodes.items.fused_UD.flip(1)), nodes.user_MD)


def test_an_index_holds_vectors_as_they_are_after_propagation(system: System, world: Path, tmp_path: Path) -> None:
    history = histories(world)[0]
    system.encode_items(world / "boutique")
    ((_, before),) = system.recommend(history, 1)
    system._recommender.propagation = Mirrored()
    system.index(world / "boutique", tmp_path / "index")
    system.encode_items(world / "boutique")
    wanted, found = system.recommend(history, 8), load_index(tmp_path / "index").recommend(history, 8)
    assert [one for _, one in found] == pytest.approx([one for _, one in wanted], rel=1e-5, abs=1e-5)
    assert wanted[0][1] != pytest.approx(before, rel=1e-2)


class Nearest(Scorer):
    def forward(self, query: Query, items: ItemVectors, candidate_KC: torch.Tensor | None = None) -> torch.Tensor:
        assert candidate_KC is None
        return -torch.cdist(query.hidden_KD, items.fused_UD)


def test_a_score_that_is_not_an_inner_product_has_no_index(system: System, world: Path, tmp_path: Path) -> None:
    system.encode_items(world / "boutique")
    system._recommender.scorer = Nearest()
    with pytest.raises(RecipeError, match="its scores are not inner products, as an index needs"):
        system.index(world / "boutique", tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_the_command_prints_recall_and_keeps_existing_output(
    small_run: Path, world: Path, tmp_path: Path, pmmrec: Pmmrec, cache: Path
) -> None:
    asked = ("small", world / "boutique", "--out", tmp_path / "index", "--hub", small_run / "hub", "--cache", cache)
    told = pmmrec("index", *asked, "--kind", "hnsw", "--users", 10)
    assert told.code == 0, told.output
    assert "recall@10 of hnsw at efSearch 64: 1.0000 of exact search, 10 users" in told.output
    assert "index: 36 items" in told.output
    again = pmmrec("index", *asked)
    assert (again.code, "exists; choose another name" in again.output) == (2, True)
    few = pmmrec("index", *asked[:2], "--out", tmp_path / "k", *asked[4:], "--k", 100)
    assert (few.code, "--k 100: boutique has only 36 items" in few.output) == (2, True)
