"""An import that is killed amid its pictures leaves no domain, and goes on with what it had decoded."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmmrec.data.importers import pictures
from pmmrec.data.importers.picture_cache import FILE
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.verify import verify_domain

NUM_ITEMS, LEAST_KEPT, WAIT_S = 300, 40, 60.0
CHILD = """
import sys
from pathlib import Path
from pmmrec.data.importers import pictures
from pmmrec.data.importers.table import TableImport, import_table
pictures.IMAGE_BATCH = 4
import_table(TableImport.model_validate_json(Path(sys.argv[1]).read_text()))
"""


def num_kept(cache: Path) -> int:
    """Pictures that another process has kept."""
    try:
        with closing(sqlite3.connect(f"file:{cache / FILE}?mode=ro", uri=True)) as file:
            return int(file.execute("SELECT count(*) FROM pictures").fetchone()[0])
    except sqlite3.Error:  # not made yet
        return 0


@pytest.mark.long
def test_a_killed_import_goes_on_with_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for number in range(NUM_ITEMS):
        pixels = noise.integers(0, 255, (300, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / f"i{number}.jpg")
    (tmp_path / "items.csv").write_text("item_id,text\n" + "".join(f"i{number},x\n" for number in range(NUM_ITEMS)))
    (tmp_path / "log.csv").write_text("user_id,item_id\nu,i3\n")
    task = TableImport(
        items=tmp_path / "items.csv",
        interactions=tmp_path / "log.csv",
        images=tmp_path / "pictures",
        name="shop",
        out=tmp_path / "domain",
        k_core=None,
        num_threads=1,
        cache=tmp_path / "cache",
    )
    (tmp_path / "task.json").write_text(task.model_dump_json())
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path / "task.json")])
    try:
        end = time.monotonic() + WAIT_S
        while num_kept(tmp_path / "cache") < LEAST_KEPT and child.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
    finally:
        child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not task.out.exists()

    decoded: list[int] = []
    real = pictures.stored_jpeg
    monkeypatch.setattr(pictures, "stored_jpeg", lambda data, side: decoded.append(side) or real(data, side))
    domain = import_table(task)
    assert len(decoded) <= NUM_ITEMS - LEAST_KEPT
    assert domain.info.summary.kept["images"] == NUM_ITEMS
    assert "removed what an unfinished import had left behind" in domain.info.summary.notes
    assert verify_domain(domain.folder) == []
