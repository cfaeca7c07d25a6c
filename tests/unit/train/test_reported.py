"""An error that several processes of a machine raise together is reported once."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from pmmrec.errors import DataError, LostProcessError, PMMRecError, StoppedError
from pmmrec.terminal import errors_for_people
from pmmrec.train.reported import OWN_FILE


def _said(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as ended, errors_for_people():
        raise error
    return ended.value.exit_code, capsys.readouterr().err


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A launch of several processes; each has a folder of its own in that of the launch."""
    _become(0, tmp_path, monkeypatch)
    return monkeypatch


def _become(rank: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / str(rank)).mkdir()
    monkeypatch.setenv(OWN_FILE, str(folder / str(rank) / "error.json"))


@pytest.mark.parametrize(
    "error", [StoppedError("step 3: ended"), DataError("row 7"), OSError(28, "full"), MemoryError()]
)
def test_the_first_process_reports_an_error_and_the_second_only_ends_with_its_code(
    launch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    code, told = _said(error, capsys)
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    _become(1, tmp_path, launch)
    assert _said(error, capsys) == (code, "")
    other = _said(PMMRecError("something else"), capsys)
    assert other == (1, "error: something else\n")


def test_an_error_of_one_process_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    error = DataError("row 7 is bad")
    error.met_by = "process 1 of 2"
    assert _said(error, capsys) == (3, "error: process 1 of 2: row 7 is bad\n")


def test_a_lost_connection_is_reported_only_if_nothing_else_was(
    launch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lost, reset = LostProcessError("process 1 cannot reach the others"), RuntimeError("gloo/transport/tcp: reset")
    assert _said(lost, capsys) == (4, f"error: {lost}\n")
    _become(1, tmp_path, launch)
    for error in (lost, reset, LostProcessError("process 2 cannot reach the others")):
        assert _said(error, capsys) == (4, "")
    assert _said(DataError("row 7 is bad"), capsys) == (3, "error: row 7 is bad\n")


def test_without_a_launch_every_process_reports_its_errors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in (None, "", str(tmp_path / "gone" / "0" / "error.json")):
        monkeypatch.delenv(OWN_FILE, raising=False)
        if place is not None:
            monkeypatch.setenv(OWN_FILE, place)
        for _ in range(2):
            assert _said(DataError("row 7 is bad"), capsys) == (3, "error: row 7 is bad\n")
