"""What an import leaves out is recorded with its file, its line or picture, the column and the value."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.errors import DataError


def test_rows_are_named_by_file_line_column_and_value(shop, places) -> None:
    shop.items.write_text("sku,text\na,red\n \t,blank\nbare, \n")
    shop.interactions.write_text(
        "who,sku,when\nu,a,1\n ,a,2\nu,ghost,3\nu,a,soon\nu,a,5\nu,a,\nu,bare,6\nu,,7\nu,a,8\n"
    )
    names = {"item_id": "sku", "user_id": "who", "timestamp": "when"}
    domain = shop.run(columns=names)
    assert places(domain, "item") == [("items.csv", 3, "sku", " \t"), ("items.csv", 4, "text", " ")]
    assert places(domain, "interaction") == [
        ("interactions.csv", 3, "who", " "),
        ("interactions.csv", 4, "sku", "ghost"),
        ("interactions.csv", 5, "when", "soon"),
        ("interactions.csv", 7, "when", None),
        ("interactions.csv", 8, "sku", "bare"),
        ("interactions.csv", 9, "sku", None),
    ]


def test_rows_that_are_filtered_name_the_column_of_the_rule(shop, left_out) -> None:
    shop.interactions.write_text(
        "user_id,item_id,rating,timestamp\nu,a,5,10\nu,b,2.50,11\nu,c,?,12\nu,a,4,13\nv,b,5,99\nw,c,5,14\nw,a,5,15\n"
        "u,c,5,16\nx,a,5,17\n"
    )
    domain = shop.run(min_rating=4, until="20", repeats="first", k_core=2)
    names = ("line", "reason", "column", "value")
    assert [tuple(row[name] for name in names) for row in left_out(domain) if row["kind"] == "interaction"] == [
        (3, "rating below 4", "rating", "2.50"),
        (4, "no readable rating", "rating", "?"),
        (5, "a repeat; the first is kept", "item_id", "a"),
        (6, "from 20 on", "timestamp", "99"),
        (10, "outside the 2-core", None, None),
    ]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("user_id,item_id\nu,a\nu,x\n", [3]),
        ("\ufeffuser_id,item_id\r\nu,a\r\nu,x\r\n", [3]),
        ("user_id,item_id\n\nu,a\n\n\nu,x\nu,y\n", [6, 7]),
        ('user_id,item_id\n"u\n\nv",a\n"u\n""\nw",x\n"u",y\n', [5, 8]),
    ],
)
def test_lines_count_what_people_see(shop, places, text: str, lines: list[int]) -> None:
    shop.interactions.write_text(text, newline="")
    assert [line for _, line, *_ in places(shop.run(), "interaction")] == lines


def test_a_row_of_a_file_without_lines_has_none(shop, left_out, places) -> None:
    log = pa.table({"user_id": ["u", "u"], "item_id": ["x", "a"]})
    pq.write_table(log, shop.folder / "log.parquet")
    domain = shop.run(interactions=shop.folder / "log.parquet")
    assert places(domain, "interaction") == [("log.parquet", None, "item_id", "x")]
    assert left_out(domain)[0]["row"] == 1


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("log.jsonl", '{"user_id": "u", "item_id": "a"}\n\n{"user_id": "u", "item_id": "x"}\n', 3),
        ("log.json", '[\n{"user_id": "u", "item_id": "a"},\n{"user_id": "u", "item_id": "x"}\n]\n', None),
    ],
)
def test_an_object_of_json_is_named_by_its_line_where_it_has_one(
    shop, places, name: str, text: str, line: int | None
) -> None:
    assert places(shop.run(interactions=shop.write(name, text)), "interaction") == [(name, line, "item_id", "x")]
    packed = shop.write(f"{name}.gz", gzip.compress(text.encode()))
    again = shop.run(interactions=packed, out=shop.folder / "again")
    assert places(again, "interaction") == [(f"{name}.gz", line, "item_id", "x")]


def test_items_of_a_list_are_named_by_the_line_of_the_list(shop, left_out, places) -> None:
    shop.interactions.write_text("user_id,item_ids\nu,a b\nv,a x c y\n")
    domain = shop.run()
    assert places(domain, "interaction") == [("interactions.csv", 3, "item_id", one) for one in ("x", "y")]
    assert [row["row"] for row in left_out(domain)] == [4, 6]


def test_pictures_are_named_by_their_file_and_paths_by_their_line(shop, left_out) -> None:
    shop.write("pictures/bad.png", b"")
    shop.paint("good.png")
    shop.items.write_text("item_id,text,cover\na,red,good.png\nb,blue,bad.png\nc,hat,no.png\n")
    domain = shop.run(images=shop.folder / "pictures", image_column="cover")
    found = [
        tuple(row[name] for name in ("id", "file", "line", "image", "column", "value")) for row in left_out(domain)
    ]
    assert found == [
        ("b", "pictures", None, "bad.png", None, None),
        ("c", "items.csv", 4, None, "cover", "no.png"),
    ]


def test_pictures_in_a_column_are_named_by_the_items(shop, left_out) -> None:
    path = shop.folder / "items.parquet"
    picture = shop.paint("x.png").read_bytes()
    pq.write_table(pa.table({"item_id": ["a", "b"], "text": ["x", "y"], "image": [picture, b"no"]}), path)
    shop.interactions.write_text("user_id,item_id\nu,a\nu,b\n")
    (row,) = left_out(shop.run(items=path))
    assert (row["file"], row["image"], row["reason"][:13]) == ("items.parquet", None, "not a picture")


def test_more_pictures_than_allowed_are_refused_with_the_first(shop) -> None:
    for name in "ab":
        shop.write(f"pictures/{name}.png", b"")
    shop.paint("c.png")
    with pytest.raises(DataError, match=r"pictures: 2 of 3 pictures are rejected, more than 50 %: empty file \(2, the"):
        shop.run(images=shop.folder / "pictures", max_rejects=0.5)
    assert shop.run(images=shop.folder / "pictures", max_rejects=0.7).info.summary.kept["images"] == 1
