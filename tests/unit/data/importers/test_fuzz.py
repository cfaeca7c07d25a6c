"""Whatever damaged files hold, an import ends in one line or in a whole domain, and loses no row unseen.

The same damage each time; `make fuzz` draws other damage for as long as one likes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from fuzzed import Subject, attempt, damaged, subjects
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pmmrec.data.importers.kinds import importers

SUBJECTS = subjects()


@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if not subject.is_native])
@settings(
    max_examples=2,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_damaged_files_are_imported_whole_or_refused_in_one_line(name: str, data: st.DataObject) -> None:
    subject: Subject = SUBJECTS[name]
    with tempfile.TemporaryDirectory() as room:
        attempt(subject, data.draw(damaged(subject.files)), Path(room))


def test_every_kind_is_damaged(tmp_path: Path) -> None:
    assert {name.partition(":")[0] for name in SUBJECTS} == {*(one.name for one in importers), "table", "pictures"}
    for name in ("table: csv", "pictures: zip"):
        room = tmp_path / name.partition(": ")[2]
        room.mkdir()
        assert attempt(SUBJECTS[name], SUBJECTS[name].files, room) == "imported"
