"""Further columns of a domain's items are read as texts of their own, and as attributes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pmmrec.contracts import TextSpec, TokenInputs, ValueInputs, ValueSpec
from pmmrec.data.columns import ItemColumn
from pmmrec.data.domain import Domain
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.items import ItemReader
from pmmrec.data.statistics import domain_statistics
from pmmrec.data.verify import verify_domain
from pmmrec.report.domains import Statistics
from tests.support.packed import texts_of

ITEMS = 'item_id,text,about it\na,red shoe,"made of  leather &amp; wool"\nb,blue hat,\nc,blue hat,  \nd,blue hat,new\n'


@pytest.fixture
def domain(tmp_path: Path) -> Domain:
    """Items a, b, c and d; b, c and d have the same text, and only a and d have a text in the column `about it`."""
    items, interactions = tmp_path / "items.csv", tmp_path / "interactions.csv"
    items.write_text(ITEMS)
    interactions.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user in "uv" for item in "abcd"))
    return import_table(
        TableImport(items=items, interactions=interactions, name="four", out=tmp_path / "x", k_core=None)
    )


def test_a_column_is_read_and_cleaned_like_the_text(domain: Domain) -> None:
    rows = np.array([3, 1, 0, 2])
    assert domain.texts(rows, "about it") == ["new", None, "made of leather & wool", None]
    assert domain.has_text("about it").tolist() == [True, False, False, True]
    assert domain.texts(rows) == ["blue hat", "blue hat", "red shoe", "blue hat"]


def test_no_item_has_a_text_in_a_column_that_the_domain_lacks(domain: Domain) -> None:
    assert domain.texts(np.array([0, 1]), "summary") == [None, None]
    assert not domain.has_text("summary").any()


def test_a_value_has_the_same_number_in_every_domain(domain: Domain, tmp_path: Path) -> None:
    items = tmp_path / "other.csv"
    items.write_text("item_id,text,about it\nz,coat, new\ny,hat,made of leather & wool\nx,cap,New\n")
    (tmp_path / "who.csv").write_text("user_id,item_id\n" + "".join(f"u,{item}\n" for item in "zyx"))
    task = TableImport(items=items, interactions=tmp_path / "who.csv", name="o", out=tmp_path / "other", k_core=None)
    ours, theirs = domain.value_keys("about it").tolist(), import_table(task).value_keys("about it").tolist()
    assert (ours[0], ours[3], ours[1:3]) == (theirs[1], theirs[0], [0, 0])
    assert len({0, *ours, *theirs}) == 4  # `New` is another value
    assert domain.catalogue.value_counts("about it") == {ours[0]: 1, ours[3]: 1}
    assert domain.catalogue.value_counts("brand") == {}


def test_a_reader_gives_values_of_attributes(domain: Domain, tmp_path: Path) -> None:
    reader = ItemReader([domain], {"about it": ValueSpec()}, tmp_path / "cache", max_unreadable=0.5)
    keys = domain.value_keys("about it")
    values = reader.read(np.array([0, 0, 0]), np.array([3, 1, 0])).fields["about it"]
    assert isinstance(values, ValueInputs)
    assert (values.key_R.tolist(), values.item_index_R.values.tolist()) == ([keys[3], keys[0]], [0, 2])
    alone = reader.read(np.array([0]), np.array([2])).fields["about it"]
    assert isinstance(alone, ValueInputs)
    assert (alone.key_R.tolist(), alone.item_index_R.values.tolist()) == ([0], [1])
    assert reader.contents(0).same_as_N.tolist() == [0, 1, 1, 3]
    assert reader.contents(0).distinct.tolist() == [0, 3]


def test_columns_are_counted(domain: Domain) -> None:
    found = domain_statistics(domain)
    assert found.num_with_column == {"about it": 2}
    assert ["items with column about it", 2] in Statistics((found,)).table().rows
    assert verify_domain(domain.folder) == []


def test_a_reader_gives_several_texts_of_the_same_items(domain: Domain, tokenizer: Any, tmp_path: Path) -> None:
    reads = dict.fromkeys(("text", "about it"), TextSpec(tokenizer))
    reader = ItemReader([domain], reads, tmp_path / "cache")
    items = reader.read(np.array([0, 0, 0]), np.array([0, 1, 3]))
    assert {field: has_U.tolist() for field, has_U in items.has_U.items()} == {
        "text": [True, True, True],
        "about it": [True, False, True],
    }
    text, about = items.fields["text"], items.fields["about it"]
    assert isinstance(text, TokenInputs)
    assert isinstance(about, TokenInputs)
    assert texts_of(text) == {0: [1, 13, 14], 1: [1, 14, 13], 2: [1, 14, 13]}
    assert texts_of(about) == {0: [1, 14, 12, 17, 11, 14], 2: [1, 13]}
    assert reader.contents(0).same_as_N.tolist() == [0, 1, 1, 3]  # b and c differ from d by what is said about it


def test_each_text_has_its_own_entry_in_the_cache(domain: Domain, tokenizer: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    alone = ItemReader([domain], {"text": TextSpec(tokenizer)}, cache)
    (entry,) = cache.glob("tokens-*")
    both = ItemReader([domain], dict.fromkeys(("text", "about it"), TextSpec(tokenizer)), cache)
    assert len(list(cache.glob("tokens-*"))) == 2
    assert entry.is_dir()
    assert alone.fingerprint(0) != both.fingerprint(0)


def test_a_column_in_several_pieces_is_one_column() -> None:
    column = ItemColumn(pa.chunked_array([["a", "b", None], ["b", " "], [], ["a"]], pa.large_string()))
    a, b = column.key_N[:2].tolist()
    assert column.key_N.tolist() == [a, b, 0, b, 0, a]
    assert column.counts == {a: 2, b: 2}
    assert column.texts(np.array([5, 4, 1])) == ["a", None, "b"]
    assert ItemColumn(pa.chunked_array([[None, None]], pa.large_string())).counts == {}
