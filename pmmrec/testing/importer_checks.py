"""The checks that kinds of import inherit."""

from __future__ import annotations

from pathlib import Path

from pmmrec.data.importers.kinds import Kind, importers
from pmmrec.testing.checks import Inapplicable, check, require
from pmmrec.testing.subjects import Subject


def _kind(subject: Subject, folder: Path) -> Kind:
    kind: Kind = subject.entry.part_class(subject.config, folder, subject.folder)
    return kind


@check("says its files", importers)
def a_kind_says_which_files_it_expects(subject: Subject) -> Inapplicable:
    """`expects` names the files, which lists and messages show."""
    require(bool(subject.entry.part_class.expects.strip()), "`expects` is empty")
    return None


@check("not others", importers)
def other_folders_are_not_recognised(subject: Subject) -> Inapplicable:
    """It recognises neither an empty folder, nor one of other files, nor one that is not there; and writes nothing."""
    empty, other = subject.folder / "empty", subject.folder / "other"
    empty.mkdir()
    other.mkdir()
    for name in ("notes.txt", "table.csv", "table.tsv", "table.parquet"):
        (other / name).write_text("a,b\n1,2\n")
    for folder in (empty, other, subject.folder / "nowhere"):
        why = _kind(subject, folder).recognise()
        require(why is None, f"recognises {folder.name} by {why}")
    require(sorted(path.name for path in subject.folder.iterdir()) == ["empty", "other"], "leaves files behind")
    return None
