"""Every small recipe of a system trains, evaluates, scores, saves and loads by the ordinary commands."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import Pmmrec, Result, working_in

from pmmrec import load
from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.modality import VectorSpec
from pmmrec.recipe import FinetuneRecipe, read_recipe
from pmmrec.report.systems import skeleton
from pmmrec.shipped import shipped_recipes

SMALL = {name: path for name, path in shipped_recipes().items() if "/small/" in name}
STARTS = {  # recipe -> that of the checkpoint which it starts from, with settings
    "zoo/content/small/adapter4rec": ("zoo/content/small/sasrec_text",),
    "zoo/ids/small/peterrec": ("zoo/ids/small/nextitnet", "model.user_encoder.cls=true"),
}
QUICK = ("train.epochs=1", "train.batch_users=16", "machine.device=cpu", "cache=cache", "name=run")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to work in, whose cache all recipes share."""
    with working_in(tmp_path_factory.mktemp("systems")):
        yield Path.cwd()


def platform(world: Path, recipe: Path) -> Path:
    """A tiny domain, with random numbers or codes for the stored features that a recipe reads."""
    model = read_recipe(FinetuneRecipe, recipe).model
    reads = {} if model is None else skeleton(model).item_encoder.reads
    specs = {name: spec for name, spec in reads.items() if isinstance(spec, VectorSpec)}
    if not specs:
        return world / "boutique"
    folder, rng = Path(shutil.copytree(world / "boutique", "boutique")), np.random.default_rng(1)
    for name, spec in specs.items():
        shape, most = (Domain.open(folder).num_items, *spec.shape), spec.num_values
        numbers = rng.normal(size=shape).astype(np.float16) if most is None else rng.integers(most, size=shape)
        store_vectors(Domain.open(folder), numbers, name, "random", num_values=most)
    return folder


def done(told: Result) -> Result:
    assert told.code == 0, told.output
    return told


@pytest.mark.parametrize("name", SMALL)
def test_a_small_system_does_what_every_model_does(place: Path, world: Path, pmmrec: Pmmrec, name: str) -> None:
    shutil.rmtree("runs", ignore_errors=True)
    shutil.rmtree("boutique", ignore_errors=True)
    domain, start = platform(world, SMALL[name]), "none"
    if name in STARTS:
        before = (*QUICK, "name=before", "rank_test=false")
        done(pmmrec("finetune", *STARTS[name], "--from", start, "--on", domain, *before))
        start = "runs/before/checkpoint"
    done(pmmrec("finetune", name, "--from", start, "--on", domain, *QUICK))

    run, kept = Path("runs/run"), Path("runs/run/checkpoint")
    done(pmmrec("zoo", "verify", kept))
    done(pmmrec("evaluate", kept, domain, "--out", "runs/again", "--cache", "cache"))
    ranks = [pq.read_table(where / "ranks.parquet")["rank"].to_pylist() for where in (run, Path("runs/again"))]
    assert ranks[0] == ranks[1]
    done(pmmrec("score", kept, domain, "--top-k", 5, "--out", "runs/lists.csv", "--cache", "cache"))
    assert len(Path("runs/lists.csv").read_text().splitlines()) == 1 + 5 * Domain.open(domain).num_users
    system = load(kept, cache="cache", device="cpu", warn=lambda _: None)
    assert system.encode_items(domain).vectors_ND.shape[0] == Domain.open(domain).num_items
