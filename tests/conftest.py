"""A tiny demo world and a tiny checkpoint, made once for all tests that want them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import SMALL, Pmmrec, run_pmmrec, sources, working_in

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.pop("XDG_CACHE_HOME", None)  # caches lie below the home folders that tests make
os.environ.pop("COLUMNS", None)  # pytest-xdist sets it, and tables fit its width


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
        small = (*SMALL, *sources(world), "name=small", "train.epochs=2", "cache=c")
        result = run_pmmrec("pretrain", "pretrain/tiny", *small)
    assert result.code == 0, result.output
    return home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """An empty folder to work in."""
    with working_in(tmp_path):
        yield tmp_path
