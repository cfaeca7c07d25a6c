import io
import json
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image

from pmmrec.data.info import IMAGES_SCHEMA, Filters, ImportSummary
from pmmrec.data.verify import verify_domain
from pmmrec.data.write import DomainFolder, new_folder

SUMMARY = ImportSummary(num_items_read=2, num_interactions_read=2, kept={}, rejected={}, num_pictures_ignored=0)


def jpeg(shade: int = 100) -> bytes:
    stored = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(stored, format="JPEG")
    return stored.getvalue()


def written(
    tmp_path: Path,
    item_ids: tuple[str, ...] = ("a", "b"),
    items: tuple[int, ...] = (0, 1),
    times: tuple[int, ...] = (1, 2),
    jpegs: tuple[bytes | None, ...] = (jpeg(), None),
) -> Path:
    with new_folder(tmp_path / "shop") as (folder, _):
        domain = DomainFolder(folder)
        domain.write_items([pa.record_batch([list(item_ids), ["x", "y"]], names=["item_id", "text"])], [])
        domain.write_images([pa.record_batch([list(jpegs), [None, None]], schema=IMAGES_SCHEMA)])
        rows = {
            "user_id": pa.array(["u"], pa.large_string()),
            "items": pa.array([items], pa.large_list(pa.int32())),
            "times": pa.array([times], pa.large_list(pa.int64())),
        }
        domain.write_sequences([pa.record_batch(rows)], has_times=True)
        domain.seal("shop", filters=Filters(), image_side=8, time_unit="as given", sources={}, summary=SUMMARY)
    return tmp_path / "shop"


def test_a_sound_domain_has_no_problem(tmp_path: Path) -> None:
    assert verify_domain(written(tmp_path)) == []


@pytest.mark.parametrize("name", ["items.arrow", "images.arrow", "sequences.arrow"])
def test_one_flipped_bit_is_found(tmp_path: Path, name: str) -> None:
    folder = written(tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    problems = verify_domain(folder)
    assert problems
    assert name in problems[0]


def test_what_cannot_be_opened_is_one_problem(tmp_path: Path) -> None:
    assert len(verify_domain(tmp_path / "nowhere")) == 1


@pytest.mark.parametrize(
    ("broken", "problem"),
    [
        ({"items": (0, 7)}, "1 item rows outside 0..1, such as [7]"),
        ({"items": (-1, 0)}, "1 item rows outside 0..1, such as [-1]"),
        ({"times": (2, 1)}, "times go back in 1 sequences"),
        ({"times": (1,)}, "a user has more items than times, or fewer"),
        ({"items": (None, 1)}, "one of the items, or an entry of one, is missing"),
        ({"item_ids": ("a", "a")}, "1 ids occur more than once"),
        ({"item_ids": ("a", "")}, "an id is empty"),
        ({"jpegs": (jpeg(), jpeg()[:100])}, "image of item row 1: "),
    ],
)
def test_each_broken_rule_is_named(tmp_path: Path, broken: dict[str, tuple], problem: str) -> None:
    problems = verify_domain(written(tmp_path, **broken))
    assert len(problems) == 1
    assert problem in problems[0]


def test_times_as_far_apart_as_numbers_go_are_in_order(tmp_path: Path) -> None:
    assert verify_domain(written(tmp_path, times=(-(2**63), 2**63 - 1))) == []


@pytest.mark.parametrize("field", ["fingerprint", "item_ids_fingerprint"])
def test_a_forged_fingerprint_is_found(tmp_path: Path, field: str) -> None:
    folder = written(tmp_path)
    tree = json.loads((folder / "domain.json").read_text())
    (folder / "domain.json").write_text(json.dumps({**tree, field: "0" * 64}))
    assert field in verify_domain(folder)[0]


def test_every_damaged_file_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path)
    for name in ("items.arrow", "images.arrow"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-1])
    (folder / "sequences.arrow").unlink()
    problems = verify_domain(folder)
    assert len(problems) == 3
    for name in ("items.arrow", "images.arrow", "sequences.arrow"):
        assert any(f"{folder / name}: " in problem for problem in problems)


def test_stored_splits_are_checked_though_another_file_has_changed(tmp_path: Path) -> None:
    folder = written(tmp_path)
    data = (folder / "images.arrow").read_bytes()
    (folder / "images.arrow").write_bytes(data.replace(b"JFIF", b"JFIX"))
    for kind in ("splits", "impressions"):
        (folder / kind).mkdir()
        (folder / kind / "an odd name.arrow").write_bytes(b"none")
    problems = verify_domain(folder)
    assert [problem.split(": ")[0].removeprefix(f"{folder}/") for problem in problems] == [
        "images.arrow",
        "splits/an odd name.arrow",
        "impressions/an odd name.arrow",
    ]
