"""A tiny demo world and a tiny checkpoint, made once, and the command line as a function."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

# Sizes that make a whole run a matter of seconds; everything else stays as in pretrain/tiny.yaml.
SMALL = (
    "model.width=16",
    "model.item_encoder.text.architecture.hidden_size=16",
    "model.item_encoder.text.architecture.intermediate_size=32",
    "model.item_encoder.text.vocab_size=400",
    "model.item_encoder.vision.architecture.hidden_size=16",
    "model.item_encoder.vision.architecture.intermediate_size=32",
    "model.item_encoder.vision.architecture.num_hidden_layers=1",
    "train.batch_users=16",
    "train.log_every=2",
)


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    output: str


@contextmanager
def working_in(folder: Path) -> Iterator[None]:
    """Make `folder` the current one for a while."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


Pmmrec = Callable[..., Result]


def run_pmmrec(*arguments: object) -> Result:
    """Run the command line in this process."""
    from pmmrec.cli import app

    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Result(result.exit_code, result.output)


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pmmrec() -> Pmmrec:
    return run_pmmrec


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three imported platforms, `bazaar`, `gallery` and `boutique`, each with a few dozen users."""
    from pmmrec.data.demo_world import DemoWorldConfig, write_demo_world
    from pmmrec.data.importers.table import TableImport, import_table

    out = tmp_path_factory.mktemp("world")
    config = DemoWorldConfig(source_users=60, source_items=40, target_users=40, target_items=36, image_side=32)
    for name, folder in write_demo_world(out / "files", config).items():
        tables = {"items": folder / "items.csv", "interactions": folder / "interactions.csv"}
        import_table(TableImport(**tables, images=folder / "images", name=name, out=out / name, k_core=None))
    return out


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Path:
    """A folder in which `pretrain/tiny` was run for two epochs: holds runs/small and hub/small."""
    home = tmp_path_factory.mktemp("home")
    with working_in(home):
        result = run_pmmrec("pretrain", "pretrain/tiny", *SMALL, *sources(world), "name=small", "train.epochs=2", "cache=c")
    assert result.code == 0, result.output
    return home


def sources(world: Path) -> tuple[str]:
    """The override that names both sources of a world."""
    return (f"data.sources=[{world / 'bazaar'}, {world / 'gallery'}]",)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty folder to work in."""
    with working_in(tmp_path):
        yield tmp_path
