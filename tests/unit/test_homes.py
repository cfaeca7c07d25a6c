"""A leading `~` is the home folder, wherever a file or a folder is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import pmmrec
from pmmrec.data.domain import Domain
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.errors import RecipeError
from pmmrec.homes import CACHE, expanded
from pmmrec.launch import find_launch_file
from pmmrec.recipe import PretrainRecipe, read_recipe
from pmmrec.report.comparison import read_systems
from pmmrec.report.html.page import ReportPlan
from pmmrec.shipped import find_recipe
from pmmrec.terminal import named_folders
from pmmrec.tuning.search import SearchPlan
from pmmrec.zoo.checkpoint import open_checkpoint
from pmmrec.zoo.hub import list_places, pull_checkpoint


def test_a_home_that_nobody_has_is_said() -> None:
    assert expanded(Path("~/hub")) == Path.home() / "hub"
    with pytest.raises(RecipeError, match="~nobody-of-this-name is nobody's home folder here"):
        expanded(Path("~nobody-of-this-name/hub"))


def test_the_folder_of_caches_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert expanded(CACHE) == Path.home() / ".cache" / "pmmrec"
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch/me")
    assert expanded(CACHE) == Path("/scratch/me/pmmrec")
    assert expanded(Path("~/.cache")) == Path("/scratch/me")
    assert expanded(Path("~/hub")) == Path.home() / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")  # which the standard says to ignore
    assert expanded(CACHE) == Path.home() / ".cache" / "pmmrec"


def test_without_a_home_folder_only_what_helps_is_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--cache` says where tokens and pixels are kept, and nothing of copies of checkpoints."""

    def nobody(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", nobody)
    missing = r"there is no home folder here; set XDG_CACHE_HOME"
    with pytest.raises(RecipeError, match=rf"^~/\.cache/pmmrec: {missing}, or name another cache \(--cache FOLDER"):
        expanded(CACHE)
    for folder in (CACHE / "checkpoints", CACHE / "weights"):
        with pytest.raises(RecipeError, match=rf"^{folder}: {missing}$"):
            expanded(folder)


@pytest.fixture
def own(home: Path, monkeypatch: pytest.MonkeyPatch, small_run: Path, world: Path) -> Path:
    """A home folder that leads to a world and what was trained on it; the work goes on elsewhere."""
    monkeypatch.setenv("HOME", str(home / "me"))
    (home / "me").mkdir()
    for name, place in (("hub", small_run / "hub"), ("runs", small_run / "runs"), ("domains", world)):
        (home / "me" / name).symlink_to(place)
    return home / "me"


READ: dict[str, tuple[Callable[[], object], Callable[[Path], object]]] = {
    "domain": (lambda: Domain.open(Path("~/domains/boutique")).folder, lambda own: own / "domains/boutique"),
    "hub": (lambda: open_checkpoint("small", Path("~/hub")).folder, lambda own: own / "hub/small"),
    "checkpoint": (lambda: open_checkpoint("~/hub/small", Path("hub")).folder, lambda own: own / "hub/small"),
    "places": (lambda: list_places("~/hub"), lambda own: [f"{own}/hub/small"]),
    "run": (lambda: read_systems(["~/runs/small"])[0].folders, lambda own: (own / "runs/small",)),
    "seeds": (lambda: read_systems(["a=~/runs/small"])[0].folders, lambda own: (own / "runs/small",)),
    "weights": (lambda: named_folders(["a=~/hub"]), lambda own: {"a": own / "hub"}),
    "report": (lambda: ReportPlan(out=Path("~/a.html"), domains=(Path("~/b"),)).domains, lambda own: (own / "b",)),
    "search": (lambda: SearchPlan(recipe="a", space=Path("~/b.yaml"), trials=1).space, lambda own: own / "b.yaml"),
}


@pytest.mark.parametrize("what", READ)
def test_what_is_read_may_be_named_from_home(what: str, own: Path) -> None:
    read, expected = READ[what]
    assert read() == expected(own)


def test_files_of_settings_may_be_named_from_home(own: Path) -> None:
    recipe = own / "mine.yaml"
    recipe.write_text("extends: pretrain/tiny\nruns: ~/runs\ndata: {sources: [~/domains/bazaar]}")
    found = read_recipe(PretrainRecipe, find_recipe("~/mine.yaml"), ["hub=~/hub"])
    assert (found.runs, found.hub, found.data.sources) == (own / "runs", own / "hub", (own / "domains/bazaar",))
    (own / "two.yaml").write_text("num_processes: 2")
    assert find_launch_file("~/two.yaml") == own / "two.yaml"


def test_what_is_written_may_be_named_from_home(own: Path, world: Path) -> None:
    files = Path("~/files/boutique")
    (own / "files").symlink_to(world / "files")
    tables = {"items": files / "items.csv", "interactions": files / "interactions.csv"}
    import_table(TableImport(**tables, images=files / "images", name="b", out=Path("~/b"), k_core=None))
    system = pmmrec.load("small", hub="~/hub", cache="~/c", device="cpu")
    (own / "users.txt").write_text(Domain.open(own / "b").user_ids[0].as_py())
    (own / "new.csv").write_text("item_id,text\nn1,a lamp\n")
    system.score("~/b", 3, "~/top.parquet", users="~/users.txt", new_items="~/new.csv")
    system.evaluate("~/b", name="small", out="~/found")
    pull_checkpoint("~/hub/small", Path("hub"), ["fusion"], out=Path("~/part"))
    assert {path.name for path in own.iterdir()} >= {"b", "c", "top.parquet", "found", "part"}
    assert not Path("~").exists()
