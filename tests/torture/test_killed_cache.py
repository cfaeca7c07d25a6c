"""A process that is killed while it makes an entry of the cache holds up nobody and leaves nothing behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path

import pytest

from pmmrec.data.cache import ContentCache

pytestmark = pytest.mark.long


@pytest.mark.parametrize("num_waiting", [0, 3])
def test_an_entry_whose_maker_is_killed_is_made_by_another(tmp_path: Path, num_waiting: int) -> None:
    forked = multiprocessing.get_context("fork")
    began, made = forked.Event(), forked.SimpleQueue()

    def open_entry(text: str, *, hangs: bool) -> str:
        def make(folder: Path) -> None:
            (folder / "text").write_text(text)
            if hangs:
                began.set()
                signal.pause()
            made.put(text)

        entry = ContentCache(tmp_path / "cache").entry("texts", "texts", {})
        return entry.open(make, lambda folder: (folder / "text").read_text())

    killed = forked.Process(target=open_entry, args=("half",), kwargs={"hangs": True})
    killed.start()
    assert began.wait(60)
    others = [forked.Process(target=open_entry, args=("whole",), kwargs={"hangs": False}) for _ in range(num_waiting)]
    for process in others:
        process.start()
    os.kill(killed.pid, signal.SIGKILL)
    for process in (killed, *others):
        process.join()
    assert open_entry("whole", hangs=False) == "whole"
    assert [process.exitcode for process in others] == [0] * num_waiting
    assert made.get() == "whole"
    assert made.empty()
    (left,) = (tmp_path / "cache").iterdir()
    assert sorted(path.name for path in left.iterdir()) == ["index.json", "text"]
