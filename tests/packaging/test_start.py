"""Asking for help is quick, because few modules are imported before they are needed, and nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

MOST_MODULES = 450  # 389 with Python 3.11; torch alone has more than 1,000
HEAVY = ("torch", "transformers", "timm", "pyarrow", "duckdb", "accelerate", "numpy", "pydantic")

ASK = """
import json, sys
from typer.testing import CliRunner
from pmmrec.cli import app
result = CliRunner().invoke(app, ["--help"])
print(json.dumps([result.exit_code, result.output, sorted(sys.modules)]))
"""


def _started(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)


@pytest.fixture(scope="module")
def asked() -> list:
    return json.loads(_started("-c", ASK).stdout)


def test_help_imports_few_modules_and_nothing_heavy(asked: list) -> None:
    code, shown, modules = asked
    assert code == 0
    assert len(modules) < MOST_MODULES
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


RUN = """
import contextlib, io, json, sys
from pmmrec.cli import app
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    app(json.loads(sys.argv[1]))
print(json.dumps(sorted(sys.modules)))
"""
MODELS = ("transformers", "timm", "accelerate", "peft", "torch._dynamo", "torch.distributed.tensor", "scipy")


def _modules_after(*words: str) -> set[str]:
    """The modules that a verb has imported when it ends."""
    return set(json.loads(_started("-c", RUN, json.dumps(words)).stdout))


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (("recipe", "list"), ("torch", *MODELS)),
        (("data", "stats", "nowhere"), ("torch", *MODELS)),
        (("recipe", "validate", "zoo/ids/small/sasrec_in_batch"), MODELS),
        (("zoo", "list", "--hub", "nowhere"), MODELS),
        (("compare", "nowhere"), MODELS),
        (("evaluate", "nowhere", "nowhere"), MODELS),
        (("score", "nowhere", "nowhere", "--out", "lists.csv"), MODELS),
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_a_verb_imports_only_what_it_needs(words: tuple[str, ...], heavy: tuple[str, ...]) -> None:
    assert not set(heavy) & _modules_after(*words)


def test_the_help_of_a_program_imports_no_models() -> None:
    assert not set(MODELS) & _modules_after("finetune", "--help")
