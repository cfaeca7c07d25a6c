"""A run that fails before its first step leaves no folder; one that fails later keeps what it has."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pmmrec.errors import DataError, MachineError, RecipeError, StoppedError
from pmmrec.train import run_folder
from pmmrec.train.processes import MachineConfig
from pmmrec.train.run import Run, is_requeued
from pmmrec.train.state import StateConfig
from pmmrec.train.states import States


@dataclass(frozen=True)
class _Recipe:
    folder: Path
    name: str = "one"
    machine: MachineConfig = field(default=MachineConfig(device="cpu"))

    def reread(self, text: str) -> str:
        return text

    def to_yaml(self) -> str:
        return f"name: {self.name}\n"


def test_a_run_starts_with_recipe_and_environment(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        made = {"recipe.yaml", "environment.json", "events.jsonl", "lock"}
        assert {path.name for path in run.folder.iterdir()} == made
        assert (run.folder / "recipe.yaml").read_text() == "name: one\n"


@pytest.mark.parametrize(("threads", "told"), [(1, "1 thread"), (2, "2 threads")])
def test_a_run_says_with_how_many_threads_it_computes_and_gives_them_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threads: int, told: str
) -> None:
    before = torch.get_num_threads()
    recipe = _Recipe(tmp_path / "one", machine=MachineConfig(device="cpu", threads=threads))
    with Run.start(recipe):
        assert torch.get_num_threads() == threads
    assert torch.get_num_threads() == before
    assert f"1 process on cpu, {told}, command" in capsys.readouterr().out.splitlines()[0]
    assert json.loads((tmp_path / "one" / "environment.json").read_text())["threads"] == threads


def test_a_run_goes_on_with_another_number_of_threads(tmp_path: Path) -> None:
    begun = "name: one\nmachine: {threads: auto}\n"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "lock").touch()
    (tmp_path / "one" / "recipe.yaml").write_text(begun)
    with run_folder.run_folder(tmp_path / "one", begun.replace("auto", "2"), resume=True) as status:
        assert status is run_folder.RunStatus.NEW  # and not refused


def test_a_run_that_fails_before_its_first_event_removes_its_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError), Run.start(_Recipe(tmp_path / "one")):
        raise DataError("bad")
    assert not (tmp_path / "one").exists()


def test_a_run_that_fails_later_keeps_its_events(tmp_path: Path) -> None:
    run = Run.start(_Recipe(tmp_path / "one"))
    run.log.event("train", 1, loss=2.0)
    with pytest.raises(DataError), run:
        raise DataError("bad")
    assert '"loss": 2.0' in (tmp_path / "one" / "events.jsonl").read_text()


def test_a_second_run_of_the_same_name_does_not_touch_the_first(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        run.log.event("train", 1)
    with pytest.raises(RecipeError, match="this run exists"):
        Run.start(_Recipe(tmp_path / "one"))
    assert (tmp_path / "one" / "events.jsonl").stat().st_size


def test_a_second_run_in_a_folder_waits_and_is_refused_and_told_who_works_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run_folder, "LOCK_TIMEOUT_S", 0.5)
    who = rf"another run \(process {os.getpid()} on \S+\)"
    with Run.start(_Recipe(tmp_path / "one")) as run:
        run.log.event("train", 1)
        with pytest.raises(MachineError, match=rf"one: {who} works here; wait, or end it"):
            Run.start(_Recipe(tmp_path / "one"), resume=True)
        assert (tmp_path / "one" / "events.jsonl").stat().st_size
    told = rf"^warning: \S+one: {who} seems to work here; waiting up to 0.5 s for its lock$"
    assert len(re.findall(told, capsys.readouterr().err, flags=re.MULTILINE)) == 1
    Run.start(_Recipe(tmp_path / "one"), resume=True).__exit__(None, None, None)


def test_a_run_waits_for_a_lock_longer_than_an_nfs_lease() -> None:
    assert run_folder.LOCK_TIMEOUT_S > 90  # the lease of Linux's NFS server, unless an administrator changed it


def test_a_run_that_was_stopped_before_it_kept_a_state_begins_anew(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        run.log.event("train", 1)
        (run.folder / "backbones").mkdir()
    with Run.start(_Recipe(tmp_path / "one"), resume=True) as run:
        assert not run.resumes
        assert not run.is_finished
        made = {"recipe.yaml", "environment.json", "events.jsonl", "lock"}
        assert {path.name for path in run.folder.iterdir()} == made
        assert not (run.folder / "events.jsonl").stat().st_size


def _trained(folder: Path, epoch: int, **recipe: str) -> None:
    """A run that judged so many epochs and kept no state."""
    with Run.start(_Recipe(folder, **recipe)) as run:
        for _ in range(epoch):
            run.log.event("epoch", 1)
        (run.folder / "checkpoint").mkdir()
        (run.folder / "checkpoint" / "metrics.json").write_text(f'{{"epoch": {epoch}}}')


def test_what_a_run_without_a_state_has_learned_is_put_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2):
        aside = tmp_path / "one" / f"before-{number}"
        _trained(tmp_path / "one", epoch=9) if number == 1 else None
        with Run.start(_Recipe(tmp_path / "one"), resume=True) as run:
            assert not run.resumes
            assert not (run.folder / "events.jsonl").stat().st_size
            run.log.event("epoch", 1)
        told = "its run saved no state to resume from and starts again; what it had learned is in"
        assert f"warning: {tmp_path / 'one'}: {told} {aside}\n" in capsys.readouterr().err
        assert (aside / "events.jsonl").read_text().count('"event": "epoch"') == (9 if number == 1 else 1)
    assert (tmp_path / "one" / "before-1" / "checkpoint" / "metrics.json").read_text() == '{"epoch": 9}'


def test_untrained_weights_are_not_put_aside(tmp_path: Path) -> None:
    _trained(tmp_path / "one", epoch=0)
    with Run.start(_Recipe(tmp_path / "one"), resume=True) as run:
        assert not list(run.folder.glob("before-*"))
        assert not (run.folder / "checkpoint").exists()


def test_weights_that_may_have_learned_are_put_aside_where_their_events_are_gone(tmp_path: Path) -> None:
    _trained(tmp_path / "one", epoch=3)
    (tmp_path / "one" / "events.jsonl").unlink()
    with Run.start(_Recipe(tmp_path / "one"), resume=True) as run:
        assert (run.folder / "before-1" / "checkpoint").is_dir()


def test_a_run_without_a_state_does_not_start_again_with_another_recipe(tmp_path: Path) -> None:
    _trained(tmp_path / "one", epoch=1)
    with pytest.raises(RecipeError, match="cannot go on with another recipe: name was 'one', is 'two'"):
        Run.start(_Recipe(tmp_path / "one", name="two"), resume=True)
    assert (tmp_path / "one" / "checkpoint").exists()


def test_a_finished_run_is_refused_for_another_recipe(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        run.log.event("finished", 1)
    with Run.start(_Recipe(tmp_path / "one"), resume=True) as run:
        assert run.is_finished
    with pytest.raises(RecipeError, match="cannot go on with another recipe: name was 'one', is 'two'"):
        Run.start(_Recipe(tmp_path / "one", name="two"), resume=True)


def test_bytes_that_are_not_text_in_a_lock_or_in_events_are_tolerated(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        run.log.event("train", 1)
    for name in ("lock", "events.jsonl"):
        (tmp_path / "one" / name).write_bytes(b"\xff\xfe\x00")
    with Run.start(_Recipe(tmp_path / "one"), resume=True) as run:
        assert not run.resumes


def test_a_folder_of_runs_that_was_moved_holds_the_same_runs(tmp_path: Path) -> None:
    yaml = "name: one\nruns: {}\n"
    with run_folder.run_folder(tmp_path / "a" / "one", yaml.format("a"), resume=False):
        (tmp_path / "a" / "one" / "recipe.yaml").write_text(yaml.format("a"))
        (tmp_path / "a" / "one" / "events.jsonl").write_text('{"event": "finished"}\n')
    (tmp_path / "a").rename(tmp_path / "b")
    with run_folder.run_folder(tmp_path / "b" / "one", yaml.format("b"), resume=True) as status:
        assert status is run_folder.RunStatus.FINISHED


def test_notes_and_files_about_nonfinite_steps_survive_a_new_start(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        run.log.event("train", 1)
        for name in ("notes.txt", "nonfinite-00000001.json"):
            (run.folder / name).write_text(name)
    for _ in range(2):  # one that fails before its first event takes nothing of them away either
        with pytest.raises(DataError), Run.start(_Recipe(tmp_path / "one"), resume=True):
            raise DataError("bad")
    kept = {path.name for path in (tmp_path / "one").iterdir()}
    assert kept == {"lock", "notes.txt", "nonfinite-00000001.json"}


def test_states_of_a_recipe_that_is_gone_are_left_alone(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        (run.folder / "state" / "step-00000001-epoch-0001").mkdir(parents=True)
        (run.folder / "recipe.yaml").write_text("")
    with pytest.raises(RecipeError, match=r"one: its recipe\.yaml is gone or empty; put back"):
        Run.start(_Recipe(tmp_path / "one"), resume=True)


def test_resuming_a_run_that_does_not_exist_starts_it(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one"), resume=True) as run:
        assert not run.resumes


def test_a_run_that_was_killed_before_it_was_locked_starts(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with Run.start(_Recipe(tmp_path / "one"), resume=True) as run:
        assert not run.resumes


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "thesis.tex").write_text("years of work")
    with pytest.raises(RecipeError, match="one: is not a resumable run"):
        Run.start(_Recipe(tmp_path / "one"), resume=True)
    assert (tmp_path / "one" / "thesis.tex").read_text() == "years of work"


def test_the_end_of_a_run_is_on_the_disk_before_its_states_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync, state, flushed = os.fsync, tmp_path / "one" / "state", []

    def seen(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, state.exists()))
        fsync(descriptor)

    with Run.start(_Recipe(tmp_path / "one")) as run:
        state.mkdir()
        monkeypatch.setattr(os, "fsync", seen)
        States(run, StateConfig(), {}).finish()
    assert ("events.jsonl", True) in flushed
    assert not state.exists()


def test_states_that_lie_on_another_disk_are_cleared_at_the_end(tmp_path: Path) -> None:
    kept = tmp_path / "scratch" / "step-00000001-epoch-0001"
    kept.mkdir(parents=True)
    with Run.start(_Recipe(tmp_path / "one")) as run:
        (run.folder / "state").symlink_to(tmp_path / "scratch")
        States(run, StateConfig(), {}).finish()
    assert not kept.exists()
    assert (tmp_path / "one" / "state").is_symlink()
    kept.mkdir()  # as a kill amid its last steps may leave it
    with Run.start(_Recipe(tmp_path / "one"), resume=True) as run:
        assert run.is_finished
    assert not kept.exists()


def test_results_without_a_state_are_left_alone(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        (run.folder / "metrics.json").write_text("{}")
    with pytest.raises(RecipeError, match="one: holds results and no state to go on from"):
        Run.start(_Recipe(tmp_path / "one"), resume=True)
    assert (tmp_path / "one" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("name", "count", "is_again"),
    [("SLURM_RESTART_COUNT", "2", True), ("TORCHELASTIC_RESTART_COUNT", "0", False), ("OTHER", "1", False)],
)
def test_a_command_that_a_scheduler_started_again_knows(
    monkeypatch: pytest.MonkeyPatch, name: str, count: str, is_again: bool
) -> None:
    monkeypatch.setenv(name, count)
    assert is_requeued() is is_again


@pytest.mark.parametrize("error", [DataError("bad"), MachineError("no room"), RuntimeError("unknown")])
def test_a_run_that_fails_before_its_first_step_frees_its_name(tmp_path: Path, error: Exception) -> None:
    run = Run.start(_Recipe(tmp_path / "one"))
    run.log.event("parameters", 0, total=7)
    run.log.event("validation", 0, epoch=0)
    (run.folder / "checkpoint").mkdir()
    with pytest.raises(type(error)), run:
        raise error
    assert not (tmp_path / "one").exists()


def test_a_run_that_cannot_write_its_recipe_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> None:
        raise MachineError("the disk is full")

    monkeypatch.setattr("pmmrec.train.run.write_json", full)
    with pytest.raises(MachineError):
        Run.start(_Recipe(tmp_path / "one"))
    assert not (tmp_path / "one").exists()


def test_a_run_that_was_asked_to_end_before_its_first_step_keeps_its_folder(tmp_path: Path) -> None:
    run = Run.start(_Recipe(tmp_path / "one"))
    run.log.event("parameters", 0, total=7)
    with pytest.raises(StoppedError), run:
        raise StoppedError("asked")
    assert (tmp_path / "one" / "events.jsonl").exists()


def test_a_run_that_fails_keeps_what_it_has_not_made(tmp_path: Path) -> None:
    with Run.start(_Recipe(tmp_path / "one")) as run:
        (run.folder / "note.txt").write_text("of the user")
    with pytest.raises(DataError), Run.start(_Recipe(tmp_path / "one"), resume=True):
        raise DataError("bad")
    assert [path.name for path in (tmp_path / "one").iterdir() if path.name != "lock"] == ["note.txt"]
