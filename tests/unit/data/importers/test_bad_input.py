"""Input that was made to harm, or that another machine would read otherwise."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from pmmrec.data.domain import Domain
from pmmrec.data.images import PictureError, stored_jpeg
from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import _is_first, split_of, splits
from pmmrec.data.verify import verify_domain
from pmmrec.errors import DataError


def png_with(kind: bytes, content: bytes) -> bytes:
    """A small PNG with a further chunk after its header."""
    sink = io.BytesIO()
    Image.new("RGB", (32, 32)).save(sink, format="PNG")
    whole, end = sink.getvalue(), 8 + 25
    chunk = struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return whole[:end] + chunk + whole[end:]


@pytest.mark.parametrize(
    ("kind", "begin"), [(b"iCCP", b"profile\0\0"), (b"zTXt", b"Comment\0\0")], ids=["colour profile", "comment"]
)
def test_a_chunk_that_grows_a_thousandfold_takes_no_memory(kind: bytes, begin: bytes) -> None:
    data = png_with(kind, begin + zlib.compress(bytes(300_000_000), 9))
    tracemalloc.start()
    begun = time.process_time()
    with contextlib.suppress(PictureError):
        stored_jpeg(data, 16)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000  # measured 2.4 MB; the chunk holds 300 MB
    assert time.process_time() - begun < 1


def test_postscript_is_no_picture() -> None:
    with pytest.raises(PictureError, match="not a picture of a known format"):
        stored_jpeg(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", 16)


@pytest.mark.parametrize("text", ["=cmd()|' /C calc'!A0", "<script>x</script>", "[a](javascript:b)", "\u202egnp.exe"])
def test_texts_that_are_code_elsewhere_are_texts(shop, text: str) -> None:
    shop.items.write_text(f'item_id,text\na,"{text}"\nb,y\nc,z\n')
    assert shop.run().texts(np.array([0])) == [text]


def test_a_text_of_a_megabyte_is_cut_and_its_item_kept(shop) -> None:
    shop.items.write_text("item_id,text\na," + "word " * 200_000 + "\nb,y\nc,z\n")
    domain = shop.run()
    assert [len(text) for text in domain.texts(np.arange(3))] == [9_999, 1, 1]  # 10,000 characters end in a blank


@pytest.mark.parametrize("num_items", [1, 2])
def test_a_catalogue_of_one_item_is_a_domain_and_no_split_has_a_query(shop, num_items: int) -> None:
    shop.items.write_text("item_id,text\n" + "a,x\nb,y\n"[: 4 * num_items])
    shop.interactions.write_text("user_id,item_id\nu,a\nv,a\n")
    domain = shop.run()
    assert (domain.num_items, verify_domain(domain.folder)) == (num_items, [])
    split = split_of(splits.config({"type": "leave_one_out"}), domain)
    assert not split.has_query("test")
    assert split.holdout("test").num_queries == 0


def test_a_catalogue_of_no_item_is_refused(shop) -> None:
    shop.items.write_text("item_id,text\n")
    with pytest.raises(DataError, match="names its columns but has no row of data"):
        shop.run()


def test_pairs_of_many_users_and_items_do_not_overflow() -> None:
    last = 2**31 - 2
    stretch = Stretch(0, np.array([0, 2, 4, 6]), np.array([last, last, 1, last, last, 0], np.int32))
    found = _is_first(stretch, np.ones(6, dtype=bool))
    assert found.tolist() == [True, False, True, True, True, True]


PROGRAM = """
import os, sys
from pathlib import Path
os.umask(0o077)
from pmmrec.data.importers.table import TableImport, import_table
items, log, out = map(Path, sys.argv[1:])
import_table(TableImport(items=items, interactions=log, name="shop", out=out, k_core=None))
"""


def test_zone_language_and_umask_of_the_machine_change_nothing(shop) -> None:
    shop.items.write_text("item_id,text\na,R\u00e9d \u5e3d\nb,\u0130stanbul\nc,\u00dfx\n", encoding="utf-8")
    shop.interactions.write_text(
        "user_id,item_id,timestamp\nu,a,2020-03-29T02:30:00\nu,b,2020-03-28\nu,c,2020-10-25 01:30\n"
    )
    here = shop.run()
    out = shop.folder / "elsewhere"
    environment = {**os.environ, "TZ": "America/St_Johns", "LC_ALL": "C", "PYTHONUTF8": "0", "LANG": "tr_TR"}
    words = [sys.executable, "-c", PROGRAM, str(shop.items), str(shop.interactions), str(out)]
    subprocess.run(words, env=environment, check=True, timeout=240)
    assert Domain.open(out).fingerprint == here.fingerprint


def test_a_message_never_repeats_a_long_value_and_has_one_line(shop) -> None:
    shop.items.write_text(f"item_id,{'x' * 100_000}\na,y\n")
    with pytest.raises(DataError, match=r"no column 'text', found 'item_id', 'x{90,100}\.\.\.") as caught:
        shop.run()
    assert len(str(caught.value)) < 2_000
    archive = shop.write("pictures.tar.gz", b"")
    with pytest.raises(DataError, match=r"cannot be unpacked: file could not be opened successfully$"):
        shop.run(items=shop.write("fine.csv", "item_id,text\na,x\nb,y\nc,z\n"), images=archive)
