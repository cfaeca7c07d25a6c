"""The program itself: its version, its help, completion, and what it does without torch."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Pmmrec
from typer.testing import CliRunner

import pmmrec as package
from pmmrec.cli import app
from pmmrec.shipped import shipped_launch_files

_WITHOUT_TORCH = """
import sys
from pmmrec.cli import app
try:
    app(sys.argv[1:], prog_name="pmmrec")
except SystemExit as ended:
    assert not ended.code, ended.code
sys.exit("torch was loaded" if "torch" in sys.modules else 0)
"""


def test_the_version_names_the_libraries_that_matter_for_a_report(pmmrec: Pmmrec) -> None:
    result = pmmrec("--version")
    assert result.code == 0
    libraries = r"\(Python 3\.\d+\.\d+\S*, torch \S+, transformers \S+, accelerate \S+\)\n"
    assert re.fullmatch(rf"pmmrec {re.escape(package.__version__)} {libraries}", result.output)


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["data", "--help"], ["recipe", "list"]])
def test_help_version_and_lists_load_no_torch(words: list[str]) -> None:
    subprocess.run([sys.executable, "-c", _WITHOUT_TORCH, *words], check=True, capture_output=True)


@pytest.mark.parametrize("verb", ["stats", "verify"])
def test_a_domain_is_described_and_checked_without_torch(verb: str, world: Path) -> None:
    words = ["data", verb, str(world / "boutique")]
    subprocess.run([sys.executable, "-c", _WITHOUT_TORCH, *words], check=True, capture_output=True)


def test_the_module_is_the_program() -> None:
    result = subprocess.run([sys.executable, "-m", "pmmrec", "--help"], check=True, capture_output=True, text=True)
    assert "Usage: pmmrec [OPTIONS] COMMAND" in result.stdout


def test_a_shell_completes_verbs_and_options() -> None:
    def completed(line: str) -> list[str]:
        words = line.split(" ")
        asked = {"_PMMREC_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
        return CliRunner().invoke(app, [], env=asked, prog_name="pmmrec").output.split()

    assert completed("pmmrec fin") == ["finetune"]
    assert completed("pmmrec data ver") == ["verify"]
    assert "--scenario" in completed("pmmrec evaluate --s")


def test_completion_is_shown_for_the_shell_that_asks(monkeypatch: pytest.MonkeyPatch, pmmrec: Pmmrec) -> None:
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: ("bash", "/bin/bash"))
    result = pmmrec("--show-completion")
    assert result.code == 0
    assert "_PMMREC_COMPLETE=complete_bash" in result.output or "COMPLETE=complete_bash" in result.output


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_the_help_of_a_launch_lists_the_files_by_name(pmmrec: Pmmrec, verb: str) -> None:
    words = re.sub(r"[\s│]+", " ", pmmrec(verb, "--help").output)
    assert ", ".join(shipped_launch_files()) in words
    for option in ("--processes-per-node N", "--nodes N", "--node-rank R", "--rendezvous HOST:PORT", "--print-command"):
        assert option in words


def test_a_system_says_what_it_is(small_run: Path, world: Path) -> None:
    system = package.load("small", hub=small_run / "hub", device="cpu", cache=small_run / "c")
    parts = "text_encoder, vision_encoder, fusion, user_encoder"
    begins = f"<pmmrec.System {small_run / 'hub' / 'small'}: {parts}; width 16; on cpu; "
    assert repr(system) == f"{begins}no catalogue yet>"
    system.encode_items(world / "boutique")
    assert repr(system) == f"{begins}catalogue boutique of 36 items>"


def test_a_program_that_crashes_in_native_code_tells_where_python_was() -> None:
    program = "import os\nfrom pmmrec.terminal import run_program\ndef main():\n    os.abort()\nrun_program(main)"
    ended = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True)
    assert ended.returncode < 0
    assert "Fatal Python error: Aborted" in ended.stderr
    assert "in main" in ended.stderr
