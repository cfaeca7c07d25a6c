"""Every code block of docs/add_a_part.md works as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[3]
PAGE = CHECKOUT / "docs" / "add_a_part.md"
FILE = re.compile(r"^`([\w.]+)`[^\n]*:\n\n```\w+\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMANDS = re.compile(r"^```sh\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the page, and the metadata that installing them writes."""
    folder = tmp_path_factory.mktemp("plugin")
    files = dict(FILE.findall(PAGE.read_text()))
    for name, text in files.items():
        (folder / name).write_text(text)
    group = re.search(r'\[project\.entry-points\."(.*)"\]\n(\w+) = "(\w+)"', files["pyproject.toml"])
    assert group is not None
    metadata = folder / "decay-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: decay\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text(f"[{group[1]}]\n{group[2]} = {group[3]}\n")
    return folder


def run(folder: Path, *words: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(CHECKOUT))), "HOME": str(folder)}
    done = subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_block_is_a_file_or_a_command() -> None:
    page = PAGE.read_text()
    assert [name for name, _ in FILE.findall(page)] == ["decay.py", "decay.yaml", "pyproject.toml", "test_decay.py"]
    assert page.count("```") == 2 * (4 + len(COMMANDS.findall(page)))


def test_the_part_passes_the_tests_it_inherits(plugin: Path) -> None:
    said = run(plugin, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_decay.py")
    assert re.search(r"\d\d passed, 4 skipped", said)


def test_the_commands_train_the_installed_plugin(plugin: Path, world: Path) -> None:
    (block,) = COMMANDS.findall(PAGE.read_text())
    install, validate, demo, finetune = (line.split() for line in block.splitlines())
    assert (install[:2], demo[:3]) == (["pip", "install"], ["pmmrec", "data", "demo"])  # done by `plugin` and `world`
    app = ("-c", "from pmmrec.cli import app; app()")
    assert "valid, a recipe for `pmmrec finetune`" in run(plugin, *app, *validate[1:])
    words = [str(world / "boutique") if word == "demo/boutique" else word for word in finetune[1:]]
    said = run(plugin, *app, *words, "model.width=16", "machine.device=cpu", "cache=c")
    assert "epoch   1  validation" in said
