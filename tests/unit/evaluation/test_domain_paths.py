"""Paths of domains are stored as given and never published."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import working_in

from pmmrec.data.domain import Domain
from pmmrec.errors import DataError
from pmmrec.evaluation.domain_paths import read_domain_paths, write_domain_paths


@pytest.mark.parametrize("name", ["here", "dömäne mit \u202e"])
def test_a_folder_is_read_back_as_it_was_given(world: Path, tmp_path: Path, name: str) -> None:
    with working_in(tmp_path):
        Path(name).symlink_to(world / "boutique")
        write_domain_paths(tmp_path, [Domain.open(Path(name))])
    assert read_domain_paths(tmp_path) == {"boutique": Path(name)}


def test_a_run_without_recorded_paths_has_none(tmp_path: Path) -> None:
    assert read_domain_paths(tmp_path) == {}


@pytest.mark.parametrize("text", ["", "[]", '{"a": 1}', '{"a": ["x"]}', '{"a": "\\u0000"}', "[" * 100_000, '"\\ud800"'])
def test_a_file_that_names_no_folders_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "domains.json").write_text(text)
    with pytest.raises(DataError, match=r"domains\.json: .*remove the file"):
        read_domain_paths(tmp_path)


def test_published_files_do_not_contain_the_paths(small_run: Path, world: Path) -> None:
    run = small_run / "runs" / "small"
    assert read_domain_paths(run) == {name: world / name for name in ("bazaar", "gallery")}
    for published in (run / "checkpoint", small_run / "hub" / "small"):
        for file in published.rglob("*"):
            assert file.is_dir() or str(world).encode() not in file.read_bytes(), file
