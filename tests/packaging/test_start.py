"""Asking for help is quick, because nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MOST_S = 0.5  # of CPU time, which other processes of the machine do not lengthen
HEAVY = ("torch", "transformers", "timm", "pyarrow", "duckdb", "accelerate", "numpy", "pydantic")

ASK = """
import json, resource, sys
from typer.testing import CliRunner
from pmmrec.cli import app
result = CliRunner().invoke(app, ["--help"])
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([result.exit_code, result.output, used.ru_utime + used.ru_stime, sorted(sys.modules)]))
"""


def _started(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def asked() -> list[list]:
    return [json.loads(_started("-c", ASK).stdout) for _ in range(3)]


def test_help_takes_less_than_half_a_second(asked: list[list]) -> None:
    assert min(used_s for _, _, used_s, _ in asked) < MOST_S


def test_help_imports_nothing_heavy(asked: list[list]) -> None:
    code, shown, _, modules = asked[0]
    assert code == 0
    assert "pretrain" in shown
    assert not set(HEAVY) & set(modules)


@pytest.mark.parametrize(
    "statement", ["import pmmrec", "import pmmrec.cli", "import pmmrec.shipped", "dir(__import__('pmmrec'))"]
)
def test_importing_the_package_imports_no_torch(statement: str) -> None:
    said = _started("-c", f"{statement}; import sys; print([n for n in {HEAVY!r} if n in sys.modules])").stdout
    assert said.strip() == "[]"


@pytest.mark.parametrize("verb", ["pretrain", "finetune"])
def test_a_program_of_a_checkout_starts_as_it_stands(verb: str) -> None:
    program = Path(__file__).resolve().parents[2] / verb / "run.py"
    assert "--dry-run" in _started(str(program), "--help").stdout
