"""Each published layout is recognised by its files and imported, as made-up samples of it show."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layouts import SAMPLES, Files, written
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.data.importers.folder import import_folder, kind_lines
from pmmrec.data.importers.kinds import importers
from pmmrec.data.splits import split_of
from pmmrec.data.splits.given import GivenConfig
from pmmrec.errors import DataError, RecipeError


def imported(folder: Path, kind: str = "auto", **tree: Any) -> Domain:
    out = folder.parent / f"domain-{len(list(folder.parent.iterdir()))}"
    settings = tree.pop("settings", {})
    domain, _ = import_folder(kind, folder, settings, {"name": "x", "out": out, "k_core": None, **tree})
    return domain


def texts(domain: Domain) -> dict[str, str | None]:
    return dict(zip(domain.item_ids.to_pylist(), domain.texts(np.arange(domain.num_items)), strict=True))


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_layout_is_recognised_and_read(tmp_path: Path, sample: str, sequences: Callable) -> None:
    kind, files, items, users = SAMPLES[sample]
    folder = written(tmp_path / "data", files)
    out = tmp_path / "domain"
    domain, why = import_folder("auto", folder, {}, {"name": "x", "out": out, "k_core": None})
    assert why.startswith(f"{kind}, recognised by ")
    assert texts(domain) == items
    assert sequences(domain) == users
    summary = domain.info.summary
    rejected = sum(summary.rejected.get("interaction", {}).values())
    assert summary.num_interactions_read == domain.num_interactions + rejected
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "domain"]


def test_every_kind_has_a_sample() -> None:
    special = {"hf", "mmrec"}  # have tests of their own
    assert {entry.name for entry in importers} == {kind for kind, *_ in SAMPLES.values()} | special
    assert all(line.expects and line.summary for line in kind_lines())


def test_settings_of_a_kind_change_what_is_read(tmp_path: Path, sequences: Callable) -> None:
    mind = written(tmp_path / "mind [small]", SAMPLES["mind"][1])  # a pattern of DuckDB
    assert sequences(imported(mind, "mind", settings={"history": "false"})) == {"u": ["N1", "N2", "N2"], "v": ["N1"]}
    nine = written(tmp_path / "nine", SAMPLES["ninerec"][1])
    assert texts(imported(nine, settings={"language": "zh"}, kind="ninerec")) == {"v1": "\u7ea2", "v2": "\u84dd"}
    with pytest.raises(RecipeError, match="language"):
        imported(nine, "ninerec", settings={"language": "la"})


def test_options_of_an_import_win_over_what_a_kind_says(tmp_path: Path) -> None:
    folder = written(tmp_path / "ml", SAMPLES["1m"][1])
    domain = imported(folder, min_rating=4, columns={"text": "genres"})
    assert texts(domain) == {"1": "Drama|War", "2": "War"}
    assert domain.num_interactions == 1


def test_articles_without_rows_leave_pictures_alone(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, format="JPEG")
    files = {**SAMPLES["hm"][1], "articles.csv": "article_id,prod_name\n", "images/0108.jpg": picture.getvalue()}
    domain = imported(written(tmp_path / "hm", files))
    assert texts(domain) == {"0108": None}
    assert domain.info.summary.rejected["interaction"] == {"item with neither text nor image": 1}


def test_articles_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    articles = b"article_id,prod_name\n0108,Caf\xe9\n"
    with pytest.raises(DataError, match=r"articles\.csv: line 2: not UTF-8 text"):
        imported(written(tmp_path / "hm", {**SAMPLES["hm"][1], "articles.csv": articles}))


def test_pictures_in_an_lmdb_file_are_found(tmp_path: Path) -> None:
    lmdb = pytest.importorskip("lmdb")
    folder = written(tmp_path / "data", {"hm_users.tsv": "u\tv1 v2\n", "hm_items.tsv": "v1\r\nv2\r\n"})
    picture = io.BytesIO()
    Image.new("RGB", (8, 8)).save(picture, format="PNG")
    path = str(folder / "hm_images.lmdb")
    with lmdb.open(path, subdir=False, map_size=1 << 20) as file, file.begin(write=True) as transaction:
        transaction.put(b"2", picture.getvalue())
    domain = imported(folder)
    assert texts(domain) == {"v2": None}
    assert domain.info.summary.kept["images"] == 1


def test_items_of_mmrec_come_from_a_table_of_the_user(tmp_path: Path, sequences: Callable) -> None:
    log = "userID\titemID\trating\ttimestamp\tx_label\n0\t1\t5.0\t20\t0\n0\t0\t5.0\t10\t1\n"
    folder = written(tmp_path / "baby", {"baby.inter": log})
    with pytest.raises(DataError, match="holds no table of items with texts; name one: --items FILE"):
        imported(folder)
    items = written(tmp_path, {"items.csv": "item_id,text\n0,red\n1,blue\n"}) / "items.csv"
    assert sequences(imported(folder, items=items)) == {"0": ["0", "1"]}
    items.write_text("nr,title,brand\n0,red,Acme\n1,blue,\n")
    columns = {"items.item_id": "nr", "text": "{title}. {brand}"}
    assert texts(imported(folder, items=items, columns=columns)) == {"0": "red. Acme", "1": "blue"}


def test_folders_of_datasets_are_read_whole(tmp_path: Path, sequences: Callable) -> None:
    folder = tmp_path / "data"
    items = pa.table({"item_id": ["1", "02", "3"], "text": ["red", "blue", "grey"]})
    log = pa.table({"user_id": [7, 7], "item_id": ["02", "1"]})
    for number in range(3):
        path = folder / "items" / "train" / f"data-0000{number}-of-00003.arrow"
        path.parent.mkdir(parents=True, exist_ok=True)
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, items.schema) as writer:
            writer.write_table(items.slice(number, 1))
    (folder / "interactions").mkdir()
    pq.write_table(log, folder / "interactions" / "0000.parquet")
    domain = imported(folder)
    assert texts(domain) == {"1": "red", "02": "blue", "3": "grey"}
    assert sequences(domain) == {"7": ["02", "1"]}


def test_a_folder_that_no_kind_or_several_recognise_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "data", {"notes.txt": "x"})
    with pytest.raises(
        DataError, match=r"no kind would read this folder, which holds notes\.txt; see `pmmrec data kinds`"
    ):
        imported(folder)
    both = written(tmp_path / "both", {**SAMPLES["1m"][1], **SAMPLES["mind"][1]})
    with pytest.raises(
        DataError, match=r"mind by behaviors\.tsv, news\.tsv; movielens by ratings\.dat, movies\.dat would"
    ):
        imported(both)
    with pytest.raises(DataError, match=r"is no folder of steam, which expects steam_reviews\.json"):
        imported(folder, "steam")
    with pytest.raises(RecipeError, match="no kind of import is called 'movielen'; did you mean 'movielens'"):
        imported(folder, "movielen")
    with pytest.raises(DataError, match="no such folder"):
        imported(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "files", "expected"),
    [
        ("movielens", {"ratings.dat": "7::1::5::30\n", "movies.dat": "1::Am\u00e9lie::War\n"}, "Am\u00e9lie. War"),
        ("microlens", {"a_pairs.csv": "user,item,timestamp\n7,1,3\n", "a_titles.csv": "item,title\n1,A, b\n"}, "A, b"),
    ],
)
def test_compressed_files_of_a_kind_are_the_same_text(tmp_path: Path, kind: str, files: Files, expected: str) -> None:
    packed = {f"{name}.gz": gzip.compress(str(content).encode()) for name, content in files.items()}
    assert texts(imported(written(tmp_path / "data", packed), kind)) == {"1": expected}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("behaviors.tsv", "1\tu\n", "line 1: Expected Number of Columns: 5"),
        ("behaviors.tsv", "1\tu\u00e9\tx\t\t\n".encode("latin-1"), "line 1: not UTF-8 text"),
        ("behaviors.tsv", "1\tu\t11/15/2019 9:55:12 AM\t\tN1 N2\n", "no row of the table can be made of it"),
        ("behaviors.tsv.gz", gzip.compress(b"1\tu\tx\t\t\n", mtime=0)[:-9], "cannot be read: Truncated"),
    ],
)
def test_a_file_that_gives_no_interactions_is_named(tmp_path: Path, name: str, content: Any, reason: str) -> None:
    folder = written(tmp_path / "data", {name: content, "news.tsv": SAMPLES["mind"][1]["news.tsv"]})
    with pytest.raises(DataError, match=rf"data/{name}: {reason}"):
        imported(folder, "mind")


def test_a_kind_is_no_setting_of_itself(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--set type=hm: the kind is named before the folder"):
        imported(written(tmp_path / "data", SAMPLES["mind"][1]), "mind", settings={"type": "hm"})


def test_several_files_of_one_role_are_refused(tmp_path: Path) -> None:
    toys = {name.replace("Toys", "Games"): content for name, content in SAMPLES["amazon 2018"][1].items()}
    folder = written(tmp_path / "data", {**SAMPLES["amazon 2018"][1], **toys})
    with pytest.raises(DataError, match=r"2 files match meta_\*\.json: meta_Games\.json, meta_Toys\.json; leave one"):
        imported(folder, "amazon")


def test_a_title_without_a_comma_is_refused_with_its_line(tmp_path: Path) -> None:
    files = {**SAMPLES["microlens"][1], "MicroLens-50k_titles.csv": "1,red\nblue\n"}
    with pytest.raises(DataError, match="line 2: no comma after the item: 'blue'"):
        imported(written(tmp_path / "data", files))


def test_kinds_name_the_lines_of_the_original_files(tmp_path: Path, places: Callable) -> None:
    kind, files, *_ = SAMPLES["mind"]
    behaviors = files["behaviors.tsv"] + "4\tw\t11/14/2019 9:00:00 AM\tN9\tN8-1 N1-0\n"
    domain = imported(written(tmp_path / "mind", {**files, "behaviors.tsv": behaviors}), kind)
    assert places(domain, "interaction") == [("behaviors.tsv", 4, "item_id", one) for one in ("N9", "N8")]
    kind, files, *_ = SAMPLES["microlens"]
    titles = "item,title\n1,red\n\n3,\n"
    domain = imported(written(tmp_path / "lens", {**files, "MicroLens-50k_titles.csv": titles}), kind)
    assert places(domain, "item") == [("MicroLens-50k_titles.csv", 4, "text", "")]
    folder = written(tmp_path / "data", {"hm_users.tsv": "u\tv1 v2\n", "hm_items.tsv": "v1\r\nv2\r\n"})
    (folder / "hm_images").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "hm_images" / "v2.png")
    assert places(imported(folder), "item") == [("hm_items.tsv", 1, "text", None)]


def test_the_smaller_matrix_of_kuairec_is_named_by_a_setting(tmp_path: Path, sequences: Callable) -> None:
    files = {name.replace("big", "small"): content for name, content in SAMPLES["kuairec"][1].items()}
    folder = written(tmp_path / "kuairec", files)
    with pytest.raises(DataError, match=r"no big_matrix\.csv; import small_matrix\.csv with --set matrix=small"):
        imported(folder)
    assert sequences(imported(folder, settings={"matrix": "small"})) == {"7": ["1", "2"]}
    with pytest.raises(RecipeError, match="matrix"):
        imported(written(tmp_path / "ml", SAMPLES["1m"][1]), settings={"matrix": "small"})


@pytest.mark.parametrize(
    ("sample", "name", "word"),
    [
        ("ninerec", "QB_item.csv", "blue"),
        ("microlens", "MicroLens-50k_titles.csv", "red"),
        ("mind", "news.tsv", "N1 title"),
        ("latest", "movies.csv", "Dog"),
    ],
)
def test_another_encoding_is_named_where_it_is_advised(tmp_path: Path, sample: str, name: str, word: str) -> None:
    kind, files, *_ = SAMPLES[sample]
    content = str(files[name]).replace("\u7ea2", "a").replace("\u84dd", "b").replace(word, "caf\u00e9")
    folder = written(tmp_path / "data", {**files, name: content.encode("cp1252")})
    with pytest.raises(DataError, match=r"line \d: not UTF-8.* text; .*--encoding cp1252"):
        imported(folder, kind)
    tree = {"name": "x", "out": tmp_path / "named", "k_core": None}
    domain, _ = import_folder(kind, folder, {}, tree, encoding="cp1252")
    assert "caf\u00e9" in " ".join(map(str, texts(domain).values()))


def test_an_encoding_without_texts_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "yelp", SAMPLES["yelp"][1])
    with pytest.raises(RecipeError, match="--encoding cp1252: has no effect"):
        import_folder("yelp", folder, {}, {"name": "x", "out": tmp_path / "out", "k_core": None}, encoding="cp1252")


def test_the_parts_of_mmrec_become_a_split_of_the_domain(tmp_path: Path) -> None:
    rows = ("0 1 5.0 20 0", "0 0 5.0 10 2", "0 1 5.0 5 1", "1 1 5.0 7 0.0")
    log = "\n".join(["userID itemID rating timestamp x_label", *rows, ""]).replace(" ", "\t")
    maps = {"u_id_mapping.csv": "ann\t0\nbob\t1\n", "i_id_mapping.csv": "A\t0\nB\t1\n"}
    folder = written(tmp_path / "baby", {"baby.inter": log, **maps})
    items = written(tmp_path, {"items.csv": "item_id,text\n0,red\n1,blue\nA,red\nB,blue\n"}) / "items.csv"
    for ids, item in (("number", "1"), ("original", "B")):
        tree = {"name": "x", "out": tmp_path / ids, "k_core": None, "items": items}
        domain, why = import_folder("mmrec", folder, {"ids": ids}, tree)
        assert why.endswith("; its split is stored as x_label: 2 train, 1 validation, 1 test")
        split = split_of(GivenConfig(name="x_label"), domain)
        parts = {user: split.train(row).tolist() for row, user in enumerate(domain.user_ids.to_pylist())}
        ids_of = domain.item_ids.to_pylist()
        assert [[ids_of[item] for item in rows] for rows in parts.values()] == [[item], [item]]
        assert sorted(path.name for path in domain.folder.iterdir() if path.is_dir()) == ["splits"]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("u_id_mapping.csv", "ann\t0\nbob\t1\nann\t2\n", "line 3: id 'ann' stands in line 1"),
        ("i_id_mapping.csv", "A\t0\nB\t1\n\nC\t1\n", "line 4: number '1' stands in line 2"),
    ],
)
def test_an_id_of_mmrec_that_is_mapped_twice_is_refused(tmp_path: Path, file: str, content: str, told: str) -> None:
    maps = {"u_id_mapping.csv": "ann\t0\nbob\t1\n", "i_id_mapping.csv": "A\t0\nB\t1\n", file: content}
    log = "userID\titemID\trating\ttimestamp\tx_label\n0\t1\t5.0\t20\t0\n0\t0\t5.0\t10\t1\n"
    folder = written(tmp_path / "baby", {"baby.inter": log, **maps})
    items = written(tmp_path, {"items.csv": "item_id,text\nA,red\nB,blue\n"}) / "items.csv"
    tree = {"name": "x", "out": tmp_path / "out", "k_core": None, "items": items}
    with pytest.raises(DataError, match=f"{file}: {told}, too; keep one$"):
        import_folder("mmrec", folder, {"ids": "original"}, tree)


def test_a_split_of_mmrec_that_holds_nothing_out_is_said(tmp_path: Path) -> None:
    log = "userID\titemID\trating\ttimestamp\tx_label\n0\t1\t5.0\t20\t0\n"
    folder = written(tmp_path / "baby", {"baby.inter": log})
    items = written(tmp_path, {"items.csv": "item_id,text\n1,blue\n"}) / "items.csv"
    tree = {"name": "x", "out": tmp_path / "out", "k_core": None, "items": items}
    _, why = import_folder("mmrec", folder, {}, tree)
    assert "its split x_label is not stored: x_label: says train of every interaction" in why


def test_lines_that_end_in_a_return_alone_are_refused_in_one_line(tmp_path: Path) -> None:
    files = {name: str(content).replace("\n", "\r") for name, content in SAMPLES["recbole"][1].items()}
    with pytest.raises(DataError, match=r"^[^\r\n]*shop\.item: [^\r\n]*check quote marks and line ends[^\r\n]*$"):
        imported(written(tmp_path / "data", files))
