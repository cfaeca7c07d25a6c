"""Items without interactions are imported so that a model can read them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmmrec.contracts import Modality
from pmmrec.data.importers.new_items import import_new_items
from pmmrec.errors import DataError


def test_items_come_with_text_and_picture_and_the_bare_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("item_id,text\nn1,a hat\nn2,\nn3,\n")
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "pictures" / "n3.png")
    domain = import_new_items(tmp_path / "new.csv", tmp_path / "pictures", tmp_path / "work")
    assert domain.item_ids.to_pylist() == ["n1", "n3"]
    assert domain.texts(np.array([0, 1])) == ["a hat", None]
    assert domain.has[Modality.IMAGE].tolist() == [False, True]
    assert domain.info.summary.rejected["item"] == {"neither text nor image": 1}


def test_the_same_table_makes_the_same_items(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("item_id,text\nn1,a hat\nn2,a coat\n")
    first, other = (import_new_items(tmp_path / "new.csv", None, tmp_path / name) for name in ("a", "b"))
    assert first.info.files["items.arrow"].sha256 == other.info.files["items.arrow"].sha256


def test_what_is_wrong_is_said_of_the_users_own_file(tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("item_id,text\nn1,\n")
    with pytest.raises(DataError, match=r"^[^:]*/new\.csv: ") as told:
        import_new_items(tmp_path / "new.csv", None, tmp_path / "work")
    assert "interaction" not in str(told.value)
    (tmp_path / "twice.csv").write_text("item_id,text\nn1,a\nn1,b\n")
    with pytest.raises(DataError, match=r"twice\.csv: 1 item ids occur more than once"):
        import_new_items(tmp_path / "twice.csv", None, tmp_path / "again")
    with pytest.raises(DataError, match=r"none\.csv: no such file"):
        import_new_items(tmp_path / "none.csv", None, tmp_path / "third")
