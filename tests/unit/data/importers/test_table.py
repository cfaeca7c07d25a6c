import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from pmmrec.data import write
from pmmrec.data.domain import Domain
from pmmrec.data.importers import user_sequences
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.verify import verify_domain
from pmmrec.errors import DataError, PMMRecError, RecipeError

ALL_ROWS = np.arange(3)


def assert_refused(shop, kind: type[PMMRecError], message: str, **settings: object) -> None:
    """The import fails with one line, and nothing stays behind."""
    before = sorted(shop.folder.iterdir())
    with pytest.raises(kind, match=message) as caught:
        shop.run(**settings)
    assert "\n" not in str(caught.value)
    assert sorted(shop.folder.iterdir()) == before


def test_items_and_users_keep_the_order_of_the_files(shop, sequences) -> None:
    shop.items.write_text("item_id,text\nc,hat\na,red shirt\nb,blue shirt\n")
    shop.interactions.write_text("user_id,item_id,timestamp\nz,b,9\ny,a,1\nz,c,8\n")
    domain = shop.run()
    assert domain.item_ids.to_pylist() == ["c", "a", "b"]
    assert list(sequences(domain)) == ["z", "y"]


def test_interactions_are_sorted_by_time_and_then_by_row(shop, sequences) -> None:
    shop.interactions.write_text("user_id,item_id,timestamp\nu,c,5\nu,b,3\nu,a,5\nu,b,5\nu,c,-7\n")
    domain = shop.run()
    assert sequences(domain) == {"u": ["c", "b", "c", "a", "b"]}
    assert domain.times(0).tolist() == [-7, 3, 5, 5, 5]
    assert "2 interactions have the same time as the one before" in domain.info.summary.notes[1]


def test_without_timestamps_the_order_of_rows_is_kept(shop, sequences) -> None:
    shop.interactions.write_text("user_id,item_id\nu,c\nv,a\nu,a\nu,c\n")
    domain = shop.run()
    assert sequences(domain) == {"u": ["c", "a", "c"], "v": ["a"]}
    assert domain.times(0) is None
    assert domain.info.time_unit is None


def test_the_domain_records_its_source_files(shop) -> None:
    info = shop.run().info
    assert info.sources["items"].sha256 == hashlib.sha256(shop.items.read_bytes()).hexdigest()
    assert info.sources["interactions"].num_bytes == shop.interactions.stat().st_size
    assert info.sources["items"].file_name == "items.csv"
    assert info.summary.kept == {"items": 3, "users": 2, "interactions": 4, "texts": 3, "images": 0}
    assert info.summary.lines()[0] == "read 3 items, 4 interactions"


def test_the_same_files_make_the_same_domain(shop) -> None:
    shop.paint("a.png")
    shop.interactions.write_text("user_id,item_id,timestamp\nu,a,1\nu,ghost,2\n")
    first = shop.run(images=shop.folder / "pictures")
    again = shop.run(images=shop.folder / "pictures", out=shop.folder / "again", num_threads=1)
    names = sorted(path.name for path in first.folder.iterdir())
    tables = ["images.arrow", "items.arrow", "pictures.parquet", "rejected.parquet", "sequences.arrow"]
    assert names == ["domain.json", *tables]
    for name in names:
        assert (first.folder / name).read_bytes() == (again.folder / name).read_bytes()


@pytest.mark.parametrize("kind", ["tsv", "parquet"])
def test_file_types_make_the_same_domain(shop, kind: str) -> None:
    expected = shop.run()
    items = pa.table({"item_id": ["a", "b", "c"], "text": ["red shirt", "blue shirt", "hat"]})
    log = pa.table({"user_id": ["u", "v", "u", "v"], "item_id": ["a", "b", "c", "a"], "timestamp": [1, 2, 3, 4]})
    paths = {}
    for role, rows in (("items", items), ("interactions", log)):
        paths[role] = shop.folder / f"{role}.{kind}"
        if kind == "parquet":
            pq.write_table(rows, paths[role])
        else:
            lines = ["\t".join(rows.column_names), *("\t".join(map(str, row.values())) for row in rows.to_pylist())]
            paths[role].write_text("\n".join(lines))
    assert shop.run(out=shop.folder / "other", **paths).fingerprint == expected.fingerprint


def test_many_users_in_small_batches_make_the_same_domain(shop, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = [f"u{rng.integers(50)},{rng.choice(['a', 'b', 'c'])},{rng.integers(20)}" for _ in range(2000)]
    shop.interactions.write_text("user_id,item_id,timestamp\n" + "\n".join(rows))
    expected = shop.run()
    stream = user_sequences.stream
    monkeypatch.setattr(user_sequences, "SEQUENCE_BATCH", 30)
    monkeypatch.setattr(
        user_sequences, "stream", lambda *query: (b.slice(k, 7) for b in stream(*query) for k in range(0, len(b), 7))
    )
    monkeypatch.setattr(write, "MAX_BATCH_BYTES", 500)
    pieces = shop.run(out=shop.folder / "pieces")
    assert pieces.user_ids.num_chunks > 3
    assert pieces.user_ids.to_pylist() == expected.user_ids.to_pylist()
    np.testing.assert_array_equal(pieces.sequence_items, expected.sequence_items)
    np.testing.assert_array_equal(pieces.sequence_offsets, expected.sequence_offsets)
    assert [pieces.times(user).tolist() for user in range(50)] == [expected.times(user).tolist() for user in range(50)]
    assert verify_domain(pieces.folder) == []


def test_further_columns_of_items_become_text_attributes(shop) -> None:
    shop.items.write_text('item_id,price,text,"odd; ""name"""\na,1.50,red,x\nb,,blue,y\nc,007,hat,z\n')
    with pa.memory_map(str(shop.run().folder / "items.arrow")) as source:
        rows = pa.ipc.open_file(source).read_all().to_pylist()
    assert rows[0] == {"item_id": "a", "text": "red", "price": "1.50", 'odd; "name"': "x"}
    assert [row["price"] for row in rows] == ["1.50", None, "007"]


def test_columns_of_interactions_that_are_not_used_are_said(shop) -> None:
    shop.interactions.write_text("user_id,item_id,rating,Timestamp\nu,a,5,1\n")
    notes = shop.run().info.summary.notes
    assert notes == (
        "times: no column 'timestamp', so the order of rows is kept; is it 'Timestamp'? "
        "Import with --map timestamp=Timestamp",
        "interactions: columns not used: rating, Timestamp",
        "interactions: low ratings count as high ones do; --min-rating 4, or another, leaves them out",
    )


def core_by_loops(pairs: list[tuple[str, str]], k: int) -> list[tuple[str, str]]:
    while True:
        users, items = Counter(user for user, _ in pairs), Counter(item for _, item in pairs)
        kept = [(user, item) for user, item in pairs if users[user] >= k and items[item] >= k]
        if kept == pairs:
            return pairs
        pairs = kept


@pytest.mark.parametrize("seed", range(3))
def test_the_core_is_that_of_loops(shop, sequences, rejected, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pairs = [(f"u{rng.integers(25)}", f"i{int(rng.exponential(8))}") for _ in range(150)]
    num_items = 1 + max(int(item[1:]) for _, item in pairs)
    shop.items.write_text("item_id,text\n" + "".join(f"i{k},word\n" for k in range(num_items)))
    shop.interactions.write_text("user_id,item_id\n" + "".join(f"{user},{item}\n" for user, item in pairs))
    domain = shop.run(k_core=4)
    kept = core_by_loops(pairs, 4)
    expected: dict[str, list[str]] = {}
    for user, item in kept:
        expected.setdefault(user, []).append(item)
    found = sequences(domain)
    assert 0 < len(kept) < len(pairs)
    assert found == expected
    assert set(domain.item_ids.to_pylist()) == {item for _, item in kept}
    counts = Counter(kind for kind, _, _, reason in rejected(domain) if reason == "outside the 4-core")
    assert counts["interaction"] == len(pairs) - len(kept)
    assert counts["user"] == len({user for user, _ in pairs}) - len(expected)
    assert counts["item"] == num_items - domain.num_items
    assert domain.info.filters.k_core == 4


def test_users_keep_the_order_of_their_first_row_in_the_file(shop, sequences) -> None:
    shop.interactions.write_text("user_id,item_id\nz,rare\ny,a\nz,a\n")
    assert list(sequences(shop.run())) == ["z", "y"]


def test_without_a_core_items_without_interactions_stay(shop) -> None:
    shop.interactions.write_text("user_id,item_id\nu,b\n")
    assert shop.run().item_ids.to_pylist() == ["a", "b", "c"]


def test_a_core_that_leaves_nothing_is_refused(shop) -> None:
    assert_refused(shop, DataError, "no user and item have 5 interactions each; choose a smaller k_core", k_core=5)


def test_ids_are_text_and_never_trimmed_or_read_as_numbers(shop, sequences) -> None:
    shop.items.write_text("item_id,text\n1,one\n01,two\n 1,three\n1.0,four\n")
    shop.interactions.write_text("user_id,item_id\n007,01\n7, 1\n007,1\n 7,1.0\n")
    domain = shop.run()
    assert domain.item_ids.to_pylist() == ["1", "01", " 1", "1.0"]
    assert sequences(domain) == {"007": ["01", "1"], "7": [" 1"], " 7": ["1.0"]}


@pytest.mark.parametrize("type_", [pa.int8(), pa.int64(), pa.uint64()])
def test_whole_number_ids_of_parquet_become_text(shop, sequences, type_: pa.DataType) -> None:
    pq.write_table(pa.table({"item_id": pa.array([7, 8], type_), "text": ["x", "y"]}), shop.folder / "items.parquet")
    log = pa.table({"user_id": pa.array([1, 2], type_), "item_id": ["7", "8"]})
    pq.write_table(log, shop.folder / "log.parquet")
    domain = shop.run(items=shop.folder / "items.parquet", interactions=shop.folder / "log.parquet")
    assert sequences(domain) == {"1": ["7"], "2": ["8"]}


@pytest.mark.parametrize("type_", [pa.float64(), pa.bool_(), pa.binary(), pa.date32()])
def test_parquet_types_that_cannot_be_ids_are_refused(shop, type_: pa.DataType) -> None:
    values = pa.array([b"a", b"b"], type_) if type_ == pa.binary() else pa.array([0, 1]).cast(pa.int32()).cast(type_)
    pq.write_table(pa.table({"item_id": values, "text": ["x", "y"]}), shop.folder / "items.parquet")
    assert_refused(
        shop, DataError, "'item_id' is .*; ids are text or whole numbers", items=shop.folder / "items.parquet"
    )


def test_invalid_rows_are_recorded_with_the_reason(shop, rejected) -> None:
    shop.items.write_text("item_id,text\na,red\n,nameless\n \t,blank\nbare,\nb,blue\n")
    shop.interactions.write_text(
        "user_id,item_id,timestamp\nu,a,1\n,a,2\nu,,3\nu,ghost,4\nu,b,soon\nu,b,\nw,bare,5\nv,b,6\nu,a,7\nu,b,8\nv,a,nan\n"
        "u,b,9\nu,a,10\nu,b,11\n"
    )
    domain = shop.run()
    assert set(rejected(domain)) == {
        ("item", None, 2, "empty item id"),
        ("item", " \t", 3, "empty item id"),
        ("item", "bare", 4, "neither text nor image"),
        ("interaction", "/a", 2, "empty user id"),
        ("interaction", "u/", 3, "empty item id"),
        ("interaction", "u/ghost", 4, "unknown item"),
        ("interaction", "u/b", 5, "unreadable timestamp"),
        ("interaction", "u/b", 6, "no timestamp"),
        ("interaction", "w/bare", 7, "item with neither text nor image"),
        ("interaction", "v/a", 11, "unreadable timestamp"),
        ("user", "w", None, "no interaction left"),
    }
    assert domain.info.summary.rejected["item"] == {"empty item id": 2, "neither text nor image": 1}
    assert domain.info.summary.rejected["interaction"]["unreadable timestamp"] == 2
    assert "rejected 2 x item: empty item id" in domain.info.summary.lines()
    assert domain.num_interactions == 7


def test_a_domain_without_rejections_has_no_record_of_them(shop) -> None:
    domain = shop.run()
    assert not (domain.folder / "rejected.parquet").exists()
    assert "rejected.parquet" not in domain.info.files


def test_duplicate_item_ids_are_refused_by_name(shop) -> None:
    shop.items.write_text("item_id,text\na,x\nb,y\na,z\nc,x\nb,w\n")
    assert_refused(shop, DataError, r"2 item ids occur more than once: 'a' \(rows 1 and 3\), 'b' \(rows 2 and 5\)")


def test_the_first_row_of_an_item_may_be_kept(shop, rejected) -> None:
    shop.items.write_text("item_id,text\na,x\nb,y\na,z\nc,x\n")
    domain = shop.run(repeated_items="first")
    assert domain.texts(ALL_ROWS) == ["x", "y", "x"]
    assert rejected(domain) == [("item", "a", 3, "a later row of the item")]


def test_interactions_with_unknown_items_only_are_refused_with_examples(shop) -> None:
    shop.interactions.write_text("user_id,item_id\nu,01\nv,02\n")
    assert_refused(shop, DataError, r"every interaction is with an item .* '01', '02', while it holds 'a', 'b', 'c'")


def test_interactions_of_which_none_is_valid_are_refused_with_the_reasons(shop) -> None:
    shop.interactions.write_text("user_id,item_id\nu,ghost\nv,\nw,\n")
    assert_refused(shop, DataError, r"no interaction can be used: empty item id \(2\), unknown item \(1\)")


def test_mostly_unreadable_times_are_refused(shop) -> None:
    shop.interactions.write_text("user_id,item_id,timestamp\nu,a,1\nu,b,soon\nu,c,later\n")
    assert_refused(shop, DataError, r"2 of 3 timestamps cannot be read, the first in row 2 \('soon'\); give seconds")


@pytest.mark.parametrize(
    ("stamps", "told"),
    [
        (["03/04/2021 10:00", "25/04/2021 11:30", "1/5/2021 00:10"], "--time-format '%d/%m/%Y %H:%M', or leave"),
        (["03/04/2021", "05/04/2021", ""], "--time-format '%d/%m/%Y' or --time-format '%m/%d/%Y', or leave"),
        (["Apr 3, 2021", "May 1, 2021", "Jun 12, 2021"], "--time-format '%b %d, %Y', or leave"),
    ],
)
def test_the_format_of_dates_that_cannot_be_read_is_told_and_reads_them(shop, stamps: list[str], told: str) -> None:
    lines = "".join(f'u,{item},"{stamp}"\n' for item, stamp in zip("abc", stamps, strict=True))
    shop.interactions.write_text(f"user_id,item_id,timestamp\n{lines}")
    with pytest.raises(DataError, match="3 of 3 timestamps cannot be read, the first in row 1") as caught:
        shop.run()
    assert told in str(caught.value)
    assert shop.run(time_format=told.split("'")[1]).num_interactions == len([one for one in stamps if one])


def test_half_unreadable_times_are_rejected_one_by_one(shop) -> None:
    shop.interactions.write_text("user_id,item_id,timestamp\nu,a,1\nu,b,soon\n")
    assert shop.run().num_interactions == 1


def test_texts_are_cleaned_and_blank_ones_are_none(shop) -> None:
    shop.items.write_bytes('item_id,text\na,"  Caf\u0065\u0301 &amp;\n bar \x00"\nb," \t "\nc,x\n'.encode())
    shop.paint("b.png")
    domain = shop.run(images=shop.folder / "pictures")
    assert domain.texts(ALL_ROWS) == ["Caf\u00e9 & bar", None, "x"]


def test_an_existing_out_is_refused(shop) -> None:
    shop.out.mkdir()
    assert_refused(shop, RecipeError, "exists already; choose another --out or remove it")


def test_the_remains_of_a_killed_import_are_said(shop) -> None:
    (shop.folder / "domain.incomplete").mkdir()
    (shop.folder / "domain.incomplete" / "items.arrow").write_text("half")
    domain = shop.run()
    assert domain.info.summary.notes[-1] == "removed what an unfinished import had left behind"
    assert verify_domain(domain.folder) == []
    assert not (shop.folder / "domain.incomplete").exists()


def test_image_side_without_images_is_refused(shop) -> None:
    with pytest.raises(ValidationError, match="image_side has no effect without images"):
        shop.run(image_side=128)


@pytest.mark.parametrize("name", ["", "../shop", "a/b", "x" * 101])
def test_invalid_domain_names_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        TableImport(items=Path("i"), interactions=Path("j"), out=Path("o"), name=name)


def test_a_core_beyond_every_count_is_refused_before_anything_is_read(shop) -> None:
    with pytest.raises(ValidationError, match="k_core"):
        shop.run(k_core=10**40)
    assert not shop.out.exists()


def test_progress_is_reported(shop) -> None:
    shop.paint("a.png")
    calls: list[tuple[str, int, int]] = []
    settings = TableImport(
        items=shop.items,
        interactions=shop.interactions,
        images=shop.folder / "pictures",
        name="shop",
        out=shop.out,
        k_core=1,
    )
    domain = import_table(settings, lambda *call: calls.append(call))
    assert isinstance(domain, Domain)
    assert calls == [("rows read", 1, 2), ("rows chosen", 2, 2), ("images", 3, 3)]
