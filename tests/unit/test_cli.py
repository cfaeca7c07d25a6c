"""The verbs: help, exit codes, and messages that say what would be right."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import SMALL, Pmmrec, sources, working_in

from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.errors import RecipeError
from pmmrec.shipped import shipped_file
from pmmrec.terminal import errors_for_people, run_program

VERBS = [
    "pretrain",
    "finetune",
    "evaluate",
    "score",
    "index",
    "compare",
    "encoders",
    "report",
    "data",
    "data import",
    "data import table",
    "data stats",
    "data verify",
    "data demo",
    "recipe",
    "recipe list",
    "recipe show",
    "recipe copy",
    "recipe validate",
    "zoo",
    "zoo list",
    "zoo systems",
    "zoo show",
    "zoo verify",
]


@pytest.fixture
def at_run(small_run: Path):
    with working_in(small_run):
        yield small_run


@pytest.fixture
def broken(tmp_path: Path, world: Path) -> Path:
    """A copy of a domain, to be broken."""
    return Path(shutil.copytree(world / "boutique", tmp_path / "boutique"))


def _flip_a_byte(path: Path) -> None:
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(pmmrec: Pmmrec, verb: str) -> None:
    result = pmmrec(*verb.split(), "--help")
    assert result.code == 0, result.output
    assert "Usage:" in result.output


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_help_of_a_program_names_its_arguments(pmmrec: Pmmrec, verb: str) -> None:
    output = pmmrec(verb, "--help").output
    for word in ("RECIPE", "A.B=C", "--weights", "--dry-run"):
        assert word in output


@pytest.mark.parametrize(
    "words",
    [
        ("bogus",),
        ("evaluate",),
        ("evaluate", "a", "b", "c"),
        ("evaluate", "a", "b", "--seen", "perhaps"),
        ("score", "a", "b", "--out", "c", "--top-k", "0"),
        ("score", "a", "b", "--out", "c", "--seen", "include"),
        ("index", "a", "b", "--out", "c", "--kind", "magic"),
        ("recipe", "show", "pretrain/tiny", "--bogus"),
        ("pretrain",),
        ("pretrain", "pretrain/tiny", "--bogus"),
        ("pretrain", "pretrain/tiny", "stray"),
        ("finetune", "finetune/full"),
        ("recipe", "validate", "finetune/none"),
        ("recipe", "validate", "pretrain/tiny", "train.epochs=-1"),
        ("zoo", "show", "nobody"),
    ],
)
def test_wrong_arguments_end_with_2_and_leave_nothing(home: Path, pmmrec: Pmmrec, words: tuple[str, ...]) -> None:
    assert pmmrec(*words).code == 2
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--launch", "zero4"), "--launch zero4: no such file; did you mean 'zero"),
        (("--launch", "ddp", "--nodes", "2"), "--nodes 2: each machine needs --node-rank"),
        (("--nodes", "2"), "--print-command: need --launch FILE"),
        (("--print-command",), "--print-command: need --launch FILE"),
        (("--dry-run", "--launch", "ddp", "--rendezvous", "a:1"), "need a launch, but this only plans; leave them out"),
        (("--dry-run", "--nodes", "2"), "--print-command: need --launch FILE"),
        (("--dry-run", "--launch", "one_gpu", "--nodes", "2"), "is for one process, not 2"),
    ],
)
def test_a_launch_that_cannot_be_meant_ends_with_2(
    home: Path, pmmrec: Pmmrec, words: tuple[str, ...], told: str
) -> None:
    result = pmmrec("pretrain", "pretrain/tiny", *words)
    assert result.code == 2
    assert told in result.output
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(("verb", "room"), [("pretrain", "pretrain"), ("finetune", "finetune")])
def test_a_printed_launch_holds_program_recipe_and_overrides(pmmrec: Pmmrec, verb: str, room: str) -> None:
    words = ("--from", "none", "--on", "d", "a.b=c d", "--resume")
    shown = pmmrec(verb, "my.yaml", "--launch", "two_cpu", *words, "--print-command")
    assert shown.code == 0
    assert shlex.split(shown.output)[-8:] == [str(shipped_file(f"{room}/run.py")), "my.yaml", *words]


def test_weights_in_a_folder_that_is_not_there_end_with_2(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    for last in ((), ("--dry-run",)):
        result = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), "--weights", "name=nowhere", *last)
        assert result.code == 2
        assert "--weights name=nowhere: must be NAME=FOLDER with a folder that exists" in result.output
    assert list(home.glob("runs/*")) == []


def test_data_that_is_not_there_ends_with_3(home: Path, pmmrec: Pmmrec) -> None:
    missing = pmmrec("pretrain", "pretrain/tiny", "data.sources=[nowhere]")
    assert missing.code == 3
    assert "nowhere: no such folder; `pmmrec data import` makes a domain" in missing.output
    assert pmmrec("data", "stats", "nowhere").code == 3
    assert pmmrec("compare", "nowhere").code == 3
    assert list(home.iterdir()) == []


def test_a_machine_that_cannot_ends_with_4(at_run: Path, world: Path, pmmrec: Pmmrec, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), f"runs={tmp_path / 'file'}")
    assert run.code == 4
    assert "file/tiny: cannot be made: " in run.output
    for words in (
        ("evaluate", "small", world / "boutique", "--out", tmp_path / "file" / "out", "--cache", "c"),
        ("evaluate", "small", world / "boutique", "--cache", tmp_path / "file" / "cache"),
        ("score", "small", world / "boutique", "--out", tmp_path / "file" / "out", "--cache", "c"),
        ("index", "small", world / "boutique", "--out", tmp_path / "file" / "out", "--cache", "c"),
        ("recipe", "copy", "pretrain/tiny", tmp_path / "no" / "mine.yaml"),
    ):
        result = pmmrec(*words)
        assert result.code == 4, (words, result.output)
        told = [line for line in result.output.splitlines() if " items encoded, " not in line]
        assert len(told) == 1, told
        assert str(tmp_path) in told[0]


def test_the_zoo_lists_and_shows_what_was_published(at_run: Path, pmmrec: Pmmrec) -> None:
    listed = pmmrec("zoo", "list").output
    for word in ("small", "pmmrec", "16", "text_encoder", "bazaar, gallery"):
        assert word in listed
    shown = pmmrec("zoo", "show", "small").output
    for word in ("text_encoder", "hf_text", "fusion", "merge_attention", "user_encoder", "objectives/nid"):
        assert word in shown
    assert pmmrec("zoo", "verify", "small").output == "hub/small: whole\n"


def test_a_hub_that_is_not_there_yet_is_empty(home: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("zoo", "list")
    assert result.code == 0
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("place", ["hubb", "file", "file/below"])
def test_a_place_that_is_no_folder_is_not_listed_as_an_empty_one(home: Path, pmmrec: Pmmrec, place: str) -> None:
    (home / "file").write_text("")
    result = pmmrec("zoo", "list", place)
    assert result.code == 2
    assert result.output.startswith(f"error: {place}: no such folder")


def test_a_checkpoint_that_was_changed_is_refused_everywhere(
    small_run: Path, world: Path, home: Path, pmmrec: Pmmrec
) -> None:
    shutil.copytree(small_run / "hub" / "small", home / "hub" / "small")
    _flip_a_byte(home / "hub" / "small" / "fusion" / "part.safetensors")
    verified = pmmrec("zoo", "verify", "small")
    assert verified.code == 3
    assert verified.output.startswith("error: fusion/part.safetensors")
    evaluated = pmmrec("evaluate", "small", world / "boutique", "--out", "out", "--cache", "c")
    assert evaluated.code == 3
    assert "part.safetensors" in evaluated.output
    assert not (home / "out").exists()


@pytest.mark.parametrize("new_name", [None, "other.safetensors"])
def test_a_tensor_file_that_is_missing_or_renamed_is_refused_by_its_name(
    small_run: Path, world: Path, home: Path, pmmrec: Pmmrec, new_name: str | None
) -> None:
    shutil.copytree(small_run / "hub" / "small", home / "hub" / "small")
    tensors = home / "hub" / "small" / "user_encoder" / "part.safetensors"
    tensors.unlink() if new_name is None else tensors.rename(tensors.with_name(new_name))
    for command in (("zoo", "verify", "small"), ("evaluate", "small", world / "boutique", "--out", "out")):
        result = pmmrec(*command)
        assert result.code == 3
        assert "part.safetensors" in result.output
        assert new_name is None or new_name in result.output
    assert not (home / "out").exists()


def test_a_checkpoint_of_a_mistyped_name_is_told_the_nearest(at_run: Path, world: Path, pmmrec: Pmmrec) -> None:
    result = pmmrec("evaluate", "smal", world / "boutique")
    assert result.code == 2
    assert "no checkpoint 'smal', neither a folder nor a name in hub; did you mean small?" in result.output


def test_a_sound_domain_is_whole(world: Path, pmmrec: Pmmrec) -> None:
    assert pmmrec("data", "verify", world / "boutique").output == f"{world / 'boutique'}: whole\n"


def test_several_domains_are_verified_at_once_and_all_problems_told(world: Path, broken: Path, pmmrec: Pmmrec) -> None:
    other = Path(shutil.copytree(broken, broken.with_name("other")))
    _flip_a_byte(broken / "items.arrow")
    (other / "images.arrow").unlink()
    result = pmmrec("data", "verify", broken, world / "boutique", other, other.with_name("nowhere"))
    assert result.code == 3
    assert f"{broken / 'items.arrow'}: changed after it was written" in result.output
    assert f"{world / 'boutique'}: whole\n" in result.output
    assert str(other / "images.arrow") in result.output
    assert "nowhere: no such folder" in result.output
    assert pmmrec("data", "verify", world / "boutique", world / "bazaar").output.count(": whole\n") == 2


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("items.arrow", "changed after it was written"),
        ("images.arrow", "changed after it was written"),
        ("sequences.arrow", "cannot be read as an Arrow file"),  # the byte in the middle is one of an offset
    ],
)
def test_one_flipped_byte_of_a_domain_is_found(broken: Path, pmmrec: Pmmrec, name: str, told: str) -> None:
    _flip_a_byte(broken / name)
    result = pmmrec("data", "verify", broken)
    assert result.code == 3
    assert f"{broken / name}: {told}" in result.output


@pytest.mark.parametrize("name", ["domain.json", "items.arrow", "images.arrow", "sequences.arrow"])
def test_a_domain_that_lacks_a_file_is_refused(at_run: Path, broken: Path, pmmrec: Pmmrec, name: str) -> None:
    (broken / name).unlink()
    result = pmmrec("evaluate", "small", broken, "--cache", "c")
    assert result.code == 3
    assert name in result.output
    assert result.output.count("\n") == 1


def test_a_domain_cut_short_is_refused(at_run: Path, broken: Path, pmmrec: Pmmrec) -> None:
    path = broken / "items.arrow"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-8])
    result = pmmrec("evaluate", "small", broken, "--cache", "c")
    assert result.code == 3
    assert "items.arrow" in result.output


def test_an_import_that_was_interrupted_is_no_domain(at_run: Path, broken: Path, pmmrec: Pmmrec) -> None:
    incomplete = broken.rename(broken.with_name("boutique.incomplete"))
    (incomplete / "domain.json").unlink()
    for folder in (broken, incomplete):
        result = pmmrec("evaluate", "small", folder, "--cache", "c")
        assert result.code == 3
        assert result.output.startswith(f"error: {folder}")


def test_statistics_stand_side_by_side(world: Path, pmmrec: Pmmrec) -> None:
    lines = pmmrec("data", "stats", world / "bazaar", world / "boutique").output.splitlines()
    assert any("bazaar" in line and "boutique" in line for line in lines)
    (users,) = [line for line in lines if " users " in line]
    assert [word for word in users.split() if word.isdigit()] == ["60", "40"]


def test_tables_without_pictures_are_imported(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    files = world / "files" / "boutique"
    tables = ("--items", files / "items.csv", "--interactions", files / "interactions.csv")
    common = (*tables, "--name", "words", "--k-core", "none")
    result = pmmrec("data", "import", "table", *common, "--out", "words")
    assert result.code == 0, result.output
    assert pmmrec("data", "verify", "words").code == 0
    idle = pmmrec("data", "import", "table", *common, "--out", "more", "--image-side", 64)
    assert idle.code == 2
    assert "image_side has no effect without images" in idle.output
    again = pmmrec("data", "import", "table", *common, "--out", "words")
    assert again.code == 2
    assert sorted(path.name for path in home.iterdir()) == ["words"]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "error: not enough memory; lower"),
        (torch.OutOfMemoryError("CUDA out of memory"), 4, "error: not enough memory; lower"),
        (RuntimeError("[/gloo/transport/tcp/pair.cc:1] closed by peer"), 4, "error: another process of this run has"),
        (RecipeError("name: wrong"), 2, "error: name: wrong\n"),
    ],
)
def test_a_program_ends_with_one_message_and_its_code(
    error: BaseException,
    code: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def main(name: str = "") -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["program"])
    with pytest.raises(SystemExit) as leaving:
        run_program(main)
    assert leaving.value.code == code
    assert capsys.readouterr().err.startswith(message)


def test_a_fault_of_ours_is_not_hidden() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), errors_for_people():
        raise RuntimeError("shapes differ")


def test_letters_that_an_output_lacks_end_nothing(tmp_path: Path, world: Path) -> None:
    files = world / "files" / "boutique"
    tables = {"items": files / "items.csv", "interactions": files / "interactions.csv"}
    import_table(TableImport(**tables, name="日本", out=tmp_path / "domain", k_core=None))
    command = [sys.executable, "-c", "from pmmrec.cli import app; app()", "data", "stats", str(tmp_path / "domain")]
    narrow = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run(command, env=narrow, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert b"??" in result.stdout


def test_a_seed_below_zero_makes_no_world(home: Path, pmmrec: Pmmrec) -> None:
    assert pmmrec("data", "demo", "--out", "demo", "--seed", "-1").code == 2
    assert not list(home.iterdir())


def test_weights_that_no_encoder_asks_for_are_refused(home: Path, world: Path, pmmrec: Pmmrec) -> None:
    options = (*SMALL, *sources(world), "--weights", f"org/name={home}", "--dry-run")
    result = pmmrec("pretrain", "pretrain/tiny", *options)
    assert result.code == 2
    assert "--weights org/name: has no effect, no encoder asks for these weights; asked for: none" in result.output
