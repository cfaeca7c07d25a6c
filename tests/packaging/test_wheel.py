"""The wheel holds one import name and all that is shipped, and works where no checkout is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from pmmrec.shipped import ROOMS

CHECKOUT = Path(__file__).resolve().parents[2]
APP = "from pmmrec.cli import app; app()"


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps")
    done = subprocess.run([*pip, "--wheel-dir", str(out), str(CHECKOUT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def names(wheel: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


@pytest.fixture(scope="session")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like site-packages that holds the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _python(site: Path, cwd: Path, *arguments: object) -> str:
    """Run Python elsewhere with the wheel first on its path; what it says."""
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P"] if sys.version_info >= (3, 11) else [sys.executable]
    words = [*command, *(str(argument) for argument in arguments)]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_installs_one_import_name(names: list[str]) -> None:
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pmmrec"}
    assert len(tops) == 2


def test_the_wheel_leaves_out_the_tools_that_measure_the_shipped_results(names: list[str]) -> None:
    assert not [name for name in names if "evidence" in name and name.endswith(".py")]


def test_the_wheel_carries_every_shipped_file_of_the_checkout(names: list[str]) -> None:
    listed = subprocess.run(
        ["git", "-C", str(CHECKOUT), "ls-files", "--cached", "--others", "--exclude-standard", *ROOMS],
        capture_output=True,
        text=True,
        check=True,
    )
    shipped = {path for path in listed.stdout.splitlines() if (CHECKOUT / path).is_file()}
    assert {"pretrain/run.py", "finetune/run.py", "pretrain/pmmrec.yaml", "zoo/pmmrec.yaml"} <= shipped
    inside = {name.removeprefix("pmmrec/_shipped/") for name in names if name.startswith("pmmrec/_shipped/")}
    assert {name for name in inside if not name.endswith("/")} == shipped


def test_the_wheel_holds_licence_and_types_but_no_tests(names: list[str]) -> None:
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert "pmmrec/py.typed" in names
    assert not [
        name for name in names if Path(name).name.startswith(("test_", "conftest")) or "tests" in Path(name).parts
    ]
    assert not [name for name in names if name.endswith(".pyc")]


def test_the_script_starts_the_command_line(wheel: Path, names: list[str]) -> None:
    (entry,) = [name for name in names if name.endswith("entry_points.txt")]
    with zipfile.ZipFile(wheel) as archive:
        assert "pmmrec = pmmrec.cli:app" in archive.read(entry).decode()


def test_recipes_are_found_inside_the_wheel(site: Path, tmp_path: Path) -> None:
    where = _python(
        site, tmp_path, "-c", "import pmmrec, pmmrec.shipped as s; print(pmmrec.__file__, s.shipped_root())"
    )
    assert where.split() == [str(site / "pmmrec" / "__init__.py"), str(site / "pmmrec" / "_shipped")]
    listed = _python(site, tmp_path, "-c", APP, "recipe", "list").splitlines()
    assert {line.split()[0] for line in listed} >= {"pretrain/pmmrec", "finetune/full", "zoo/ids/small/sasrec_in_batch"}
    assert _python(site, tmp_path, "-c", APP, "recipe", "validate", "pretrain/pmmrec").startswith(
        "pretrain/pmmrec: valid"
    )


def test_a_run_from_the_wheel_trains_and_ranks(site: Path, tmp_path: Path, world: Path) -> None:
    tiny = ("model.width=16", "train.epochs=1", "machine.device=cpu", "cache=c", "name=ids")
    on = ("--from", "none", "--on", world / "boutique")
    said = _python(site, tmp_path, "-c", APP, "finetune", "zoo/ids/small/sasrec_in_batch", *on, *tiny)
    assert "epoch   1  validation" in said
    environment = json.loads((tmp_path / "runs" / "ids" / "environment.json").read_text())
    assert environment["commit"] is None
    assert (tmp_path / "runs" / "ids" / "ranks.parquet").is_file()
    assert (tmp_path / "runs" / "ids" / "checkpoint" / "model_index.json").is_file()
