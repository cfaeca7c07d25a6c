"""Columns of other names are named on the command line."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmmrec.errors import DataError, RecipeError

ROWS = np.arange(3)


@pytest.fixture
def foreign(shop):
    shop.items.write_text("sku,title,brand,kind\na,Red, Acme ,shirt\nb,Blue,,\nc,,Acme,hat\n")
    shop.interactions.write_text("who,sku,stars\nu,a,5\nv,b,3\nu,c,1\n")
    return shop


def test_columns_are_renamed_and_composed(foreign) -> None:
    columns = {"item_id": "sku", "user_id": "who", "text": "{title} (by {brand}). {kind}!"}
    domain = foreign.run(columns=columns)
    assert domain.texts(ROWS) == ["Red (by Acme). shirt!", "Blue!", "Acme). hat!"]
    assert domain.attributes == ("title", "brand", "kind")


def test_a_blank_value_is_left_out_with_the_words_before_it(foreign) -> None:
    domain = foreign.run(columns={"item_id": "sku", "user_id": "who", "text": "{title}. {brand}. {kind}"})
    assert domain.texts(ROWS) == ["Red. Acme. shirt", "Blue", "Acme. hat"]


def test_a_column_that_may_be_missing_is_marked(foreign) -> None:
    domain = foreign.run(columns={"item_id": "sku", "user_id": "who", "text": "{title}. {colour?}. {kind?}"})
    assert domain.texts(ROWS) == ["Red. shirt", "Blue", "hat"]


def test_an_item_without_any_of_the_values_has_no_text(foreign, rejected) -> None:
    domain = foreign.run(columns={"item_id": "sku", "user_id": "who", "text": "Title: {title}"})
    assert domain.texts(np.arange(2)) == ["Title: Red", "Title: Blue"]
    assert ("item", "c", 3, "neither text nor image") in rejected(domain)


def test_all_that_is_missing_in_both_files_is_told_at_once_with_the_options(foreign) -> None:
    with pytest.raises(DataError) as told:
        foreign.run()
    message = str(told.value)
    assert f"{foreign.items}: no columns 'item_id', 'text'" in message
    assert f"{foreign.interactions}: no columns 'user_id', 'item_id'" in message
    assert message.endswith("; or import with --map item_id=sku --map text=title --map user_id=COLUMN")


def test_an_option_with_a_name_of_two_words_can_be_copied(shop) -> None:
    items = shop.write("goods.csv", b"item_id,Product Name\na,red\n")
    with pytest.raises(DataError, match=r"import with --map text='Product Name'$"):
        shop.run(items=items)


def test_an_entry_that_fits_no_file_is_refused(foreign) -> None:
    with pytest.raises(RecipeError, match=r"--map text=nme: .*items\.csv has no column 'nme'; it has 'sku', 'title'"):
        foreign.run(columns={"text": "nme"})
    with pytest.raises(RecipeError, match=r"no column 'id', nor has .*interactions\.csv"):
        foreign.run(columns={"item_id": "id"})


def test_an_entry_may_be_for_one_file_alone(shop) -> None:
    shop.items.write_text("item_id,code,text\n1,a,red\n2,b,blue\n3,c,hat\n")
    domain = shop.run(columns={"items.item_id": "code"})
    assert domain.item_ids.to_pylist() == ["a", "b", "c"]
    assert domain.attributes == ()


def test_words_of_a_composed_text_are_never_sql(foreign) -> None:
    domain = foreign.run(
        columns={"item_id": "sku", "user_id": "who", "text": "it's '; DROP TABLE items; -- {kind}{brand}"}
    )
    assert domain.texts(ROWS[:1]) == ["it's '; DROP TABLE items; -- shirtAcme"]


def test_lists_of_texts_are_joined_where_they_are_asked_for(shop) -> None:
    path = shop.folder / "items.parquet"
    pq.write_table(pa.table({"item_id": ["a", "b"], "features": [["soft", "red"], []], "name": ["x", "y"]}), path)
    shop.interactions.write_text("user_id,item_id\nu,a\nu,b\n")
    assert shop.run(items=path, columns={"text": "{name}: {features}"}).texts(ROWS[:2]) == ["x: soft red", "y"]
    plain = shop.run(items=path, columns={"text": "features"}, out=shop.folder / "other")
    assert plain.item_ids.to_pylist() == ["a"]


def test_pictures_in_a_column_of_another_name_are_read(shop) -> None:
    data = shop.paint("a.png").read_bytes()
    path = shop.folder / "items.parquet"
    pq.write_table(pa.table({"item_id": ["a", "b"], "text": ["x", "y"], "cover": [data, None]}), path)
    shop.interactions.write_text("user_id,item_id\nu,a\nu,b\n")
    assert shop.run(items=path, columns={"image": "cover"}).info.summary.kept["images"] == 1


def test_the_options_that_are_told_can_be_given_together(shop) -> None:
    shop.items.write_text("id,name\na,x\nb,y\nc,z\n")
    shop.interactions.write_text("customer,product_id\nu,a\nv,b\n")
    told = r"--map items\.item_id=id --map text=name --map user_id=customer --map interactions\.item_id=product_id$"
    with pytest.raises(DataError, match=told):
        shop.run()


def test_a_column_of_lists_is_told_as_such(shop) -> None:
    log = shop.write("log.jsonl", '{"session": "u", "products": ["a", "b"]}\n')
    with pytest.raises(DataError, match=r"import with --map user_id=session --map item_ids=products$"):
        shop.run(interactions=log)
    log = shop.write("log.csv", "user,sequence\nu,a b\n")
    with pytest.raises(DataError, match=r"import with --map user_id=user --map item_ids=sequence$"):
        shop.run(interactions=log)


def test_a_column_of_times_is_told_with_those_that_are_missing(shop) -> None:
    log = shop.write("log.csv", "customer_id,item_id,date\nu,a,5\n")
    with pytest.raises(DataError, match=r"import with --map user_id=customer_id --map timestamp=date$"):
        shop.run(interactions=log)
