"""Original files of public data sets, where they lie beside the checkout, give the counts that plain Python finds."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from pmmrec.data.importers.folder import import_folder

DATA = Path(__file__).parents[5] / "shared" / "data"
ORIGINALS = DATA / "originals"
Counts = tuple[int, int, int]  # items, users, interactions


def rows(path: Path, sign: str, encoding: str = "utf-8") -> list[list[str]]:
    return [line.rstrip("\r\n").split(sign) for line in path.open(encoding=encoding, newline="\n")]


def of_movielens_100k(folder: Path) -> Counts:
    log, items = rows(folder / "u.data", "\t"), rows(folder / "u.item", "|", "latin-1")
    return len(items), len({row[0] for row in log}), len(log)


def of_movielens_latest_small(folder: Path) -> Counts:
    with (folder / "movies.csv").open(encoding="utf-8", newline="") as file:
        num_items = sum(1 for _ in csv.reader(file)) - 1
    log = rows(folder / "ratings.csv", ",")[1:]
    return num_items, len({row[0] for row in log}), len(log)


def of_mind_small_subset(folder: Path) -> Counts:
    news = {row[0] for row in rows(folder / "news.tsv", "\t")}
    seen: dict[str, list[str]] = {}
    first: dict[str, tuple] = {}
    for number, (_, user, moment, history, shown) in enumerate(rows(folder / "behaviors.tsv", "\t")):
        month, day, rest = moment.split("/")
        year, clock, half = rest.split(" ")
        hour, minute, second = map(int, clock.split(":"))
        place = (int(year), int(month), int(day), hour % 12 + 12 * (half == "PM"), minute, second, number)
        if user not in first or place < first[user][0]:
            first[user] = (place, history.split())
        seen.setdefault(user, []).extend(one[:-2] for one in shown.split() if one.endswith("-1"))
    kept = {user: [one for one in first[user][1] + clicks if one in news] for user, clicks in seen.items()}
    return len(news), sum(1 for items in kept.values() if items), sum(map(len, kept.values()))


def of_morec_layout_amazon_scientific(folder: Path) -> Counts:
    users = rows(folder / "am_Industrial_and_Scientific_users.tsv", "\t")
    items = {row[0] for row in rows(folder / "Industrial_and_Scientific_items.tsv", "\t")}
    return len(items), len(users), sum(len(row[1].split(" ")) for row in users)


def of_ninerec_layout_sample(folder: Path) -> Counts:
    log = rows(folder / "MT_pair.csv", ",")
    with (folder / "MT_item.csv").open(encoding="utf-8", newline="") as file:
        num_items = sum(1 for _ in csv.reader(file))
    return num_items, len({row[0] for row in log}), len(log)


COUNTED: dict[str, Callable[[Path], Counts]] = {
    function.__name__.removeprefix("of_"): function
    for function in (
        of_movielens_100k,
        of_movielens_latest_small,
        of_mind_small_subset,
        of_morec_layout_amazon_scientific,
        of_ninerec_layout_sample,
    )
}


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="the original files are not beside the checkout")
@pytest.mark.parametrize("name", COUNTED)
def test_counts_are_those_of_plain_python(tmp_path: Path, name: str) -> None:
    tree = {"name": "x", "out": tmp_path / "domain", "k_core": None}
    domain, _ = import_folder("auto", ORIGINALS / name, {}, tree)
    assert (domain.num_items, domain.num_users, domain.num_interactions) == COUNTED[name](ORIGINALS / name)


@pytest.mark.skipif(not ORIGINALS.is_dir(), reason="the original files are not beside the checkout")
def test_purchases_of_articles_with_a_picture_are_those_of_plain_python(tmp_path: Path) -> None:
    folder = ORIGINALS / "hm_kaggle_layout"
    log = rows(folder / "transactions_train.csv", ",")[1:2001]
    (tmp_path / "hm").mkdir()
    header = "t_dat,customer_id,article_id,price,sales_channel_id\n"
    (tmp_path / "hm" / "transactions_train.csv").write_text(header + "".join(",".join(row) + "\n" for row in log))
    (tmp_path / "hm" / "articles.csv").write_bytes((folder / "articles.csv").read_bytes())
    tree = {"name": "x", "out": tmp_path / "domain", "k_core": None, "images": DATA / "hm_images", "image_side": 16}
    domain, _ = import_folder("hm", tmp_path / "hm", {}, tree)
    pictures = {path.stem for path in (DATA / "hm_images").iterdir()}
    kept = [row for row in log if row[2] in pictures]
    assert (domain.num_interactions, domain.num_items) == (len(kept), len({row[2] for row in kept}))
