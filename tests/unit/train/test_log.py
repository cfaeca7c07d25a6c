"""What a run logs, on a terminal and elsewhere, with trackers that work and that fail."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest

from pmmrec.errors import MachineError
from pmmrec.train.log import RunLog, flat
from pmmrec.train.trackers import BackgroundTracker


def _events(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


class _Board:
    """Keeps what it is shown; fails where it is told to."""

    def __init__(self, fails_at: str = "") -> None:
        self.fails_at, self.shown, self.is_closed = fails_at, [], False
        self._fail("open")

    def show(self, numbers: Mapping[str, float], step: int) -> None:
        self._fail("show")
        self.shown.append((dict(numbers), step))

    def close(self) -> None:
        self._fail("close")
        self.is_closed = True

    def _fail(self, moment: str) -> None:
        if self.fails_at == moment:
            raise ConnectionError(f"cannot {moment}")


def test_events_are_on_disk_at_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path, is_main=True)
    log.event("train", 3, loss=0.5, domains={"a": {"hr@10": 1.0}})
    (event,) = _events(tmp_path)
    assert (event["event"], event["step"], event["loss"], event["domains"]) == ("train", 3, 0.5, {"a": {"hr@10": 1.0}})
    assert event["time_s"] >= 0
    log.__exit__(None, None, None)


def test_numbers_that_are_not_finite_are_written_as_json(tmp_path: Path) -> None:
    with RunLog(tmp_path, is_main=True) as log:
        log.event("train", 1, loss=math.nan, rates=[math.inf, 1.0], by={"x": -math.inf})
    text = (tmp_path / "events.jsonl").read_text(encoding="utf-8")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    event = json.loads(text, parse_constant=refuse)
    assert (event["loss"], event["rates"], event["by"]) == ("nan", ["inf", 1.0], {"x": "-inf"})


def test_all_processes_but_the_main_one_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    opened = []
    with RunLog(tmp_path, is_main=False, trackers={"a": lambda: opened.append(1)}) as log:
        log.event("train", 1, loss=1.0)
        log.say("line")
        log.warn("careful")
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert opened == []


def test_trackers_are_shown_flat_numbers_by_kind_and_closed(tmp_path: Path) -> None:
    tracker = _Board()
    with RunLog(tmp_path, is_main=True, trackers={"good": lambda: tracker}) as log:
        log.event("validation", 7, epoch=2, mean={"hr@10": 0.25}, note="words", is_best=True)
    assert tracker.shown == [({"validation/epoch": 2.0, "validation/mean.hr@10": 0.25}, 7)]
    assert tracker.is_closed


@pytest.mark.parametrize("moment", ["open", "show", "close"])
def test_a_tracker_that_raises_is_dropped_with_one_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    good = _Board()
    with RunLog(tmp_path, is_main=True, trackers={"bad": lambda: _Board(moment), "good": lambda: good}) as log:
        for step in (1, 2, 3):
            log.event("train", step, loss=1.0)
    assert capsys.readouterr().err == (
        f"warning: bad failed and is left out from here on, events.jsonl is complete: cannot {moment}\n"
    )
    assert [event["step"] for event in _events(tmp_path)] == [1, 2, 3]
    assert [step for _, step in good.shown] == [1, 2, 3]
    assert good.is_closed


def test_a_tracker_that_hangs_delays_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    never = threading.Event()

    class Hung(_Board):
        def show(self, numbers: Mapping[str, float], step: int) -> None:
            never.wait()

    complaints: list[str] = []
    aside = BackgroundTracker("hung", Hung, complaints.append)
    for step in range(3):
        aside.show({"loss": 1.0}, step)
    aside.close(timeout_s=0.2)
    assert complaints == ["it did not close within 0.2 s"]
    never.set()


def test_events_that_cannot_be_written_end_the_run_with_a_reason(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").symlink_to("/dev/full")
    told = r"events\.jsonl: cannot be written: No space left on device; mend that, then go on with --resume"
    with pytest.raises(MachineError, match=told), RunLog(tmp_path, is_main=True) as log:
        log.event("train", 1, loss=2.0)


def test_a_log_goes_back_to_a_mark(tmp_path: Path) -> None:
    with RunLog(tmp_path, is_main=True) as log:
        log.event("train", 1)
        mark = log.mark()
        log.event("train", 2)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "tra')
    with RunLog(tmp_path, is_main=True) as log:
        log.go_back(mark)
        log.event("train", 2, loss=0.5)
    assert [(event["step"], event.get("loss")) for event in _events(tmp_path)] == [(1, None), (2, 0.5)]


def test_missing_events_are_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(tmp_path, is_main=True) as log:
        log.event("train", 1)
        size = (tmp_path / "events.jsonl").stat().st_size
        log.go_back({"bytes": size + 5, "seconds": 0.0})
        log.event("train", 2)
    assert capsys.readouterr().err == "warning: events.jsonl: 5 bytes that were written have gone; events are missing\n"
    assert [event["step"] for event in _events(tmp_path)] == [1, 2]


def test_trackers_are_closed_when_a_run_fails(tmp_path: Path) -> None:
    tracker = _Board()
    with pytest.raises(KeyError), RunLog(tmp_path, is_main=True, trackers={"good": lambda: tracker}):
        raise KeyError
    assert tracker.is_closed


def test_a_warning_is_given_once(capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(None, is_main=True) as log:
        for text in ("slow", "slow", "slower"):
            log.warn(text)
    assert capsys.readouterr().err == "warning: slow\nwarning: slower\n"


def test_there_are_plain_lines_and_no_bar_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with RunLog(None, is_main=True) as log:
        log.begin_progress("epoch 1", total=2)
        log.advance()
        log.say("step 1/2  [loss] " + "x" * 300)
        log.end_progress()
    assert capsys.readouterr().out == "step 1/2  [loss] " + "x" * 300 + "\n"


def test_events_of_an_earlier_log_are_kept(tmp_path: Path) -> None:
    for step in (1, 2):
        with RunLog(tmp_path, is_main=True) as log:
            log.event("train", step)
    assert [event["step"] for event in _events(tmp_path)] == [1, 2]


def test_flat_takes_only_numbers() -> None:
    assert flat({"a": 1, "b": {"c": 2.5, "d": {"e": 3}}, "f": "g", "h": True}) == {"a": 1.0, "b.c": 2.5, "b.d.e": 3.0}
