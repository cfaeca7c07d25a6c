"""Take the outcome of a search from a recorded result, so that a lost search is not repeated."""

from __future__ import annotations

from itertools import takewhile

from pmmrec.atomic import whole_file
from pmmrec.recipe import recipe_tree
from pmmrec.settings import Tree, overlay
from pmmrec.shipped import find_recipe
from pmmrec.tuning.results import BEST_FILE, write_recipe
from pmmrec.tuning.space import read_space
from tests.real.evidence.cells import CellResult, Chosen, Results
from tests.real.evidence.identity import Identities
from tests.real.evidence.layout import Layout
from tests.real.evidence.plan import EvidencePlan, FinetuneCell
from tests.real.evidence.runs import STAMP, Run, Stamp


def recall(run: Run, plan: EvidencePlan, results: Results, layout: Layout, identities: Identities) -> bool:
    """Write what `run`, a search, found if a current result of a cell that shares it says so; whether one does."""
    if run.made != BEST_FILE:
        return False
    for cell_id, cell in plan.measured.items():
        if not isinstance(cell, FinetuneCell) or cell.search is None:
            continue
        result = results.cell(cell_id)
        if result is None or layout.search(cell_id, identities).folder != run.folder:
            continue
        if result.chosen and result.trainings and not identities.cell(cell_id).changes_since(result.identity):
            space = read_space(plan.searches[cell.search].file)
            settings = takewhile(lambda word: not word.startswith("--"), run.arguments[2:])
            tree = overlay(recipe_tree(find_recipe(cell.recipe), settings), space.tree(result.chosen.values))
            _write(run, tree, result, result.chosen)
            return True
    return False


def _write(run: Run, tree: Tree, result: CellResult, chosen: Chosen) -> None:
    run.prepare()
    run.folder.mkdir(parents=True, exist_ok=True)
    comment = [f"What a search found, as the result {result.cell} records it."]
    write_recipe(run.folder / BEST_FILE, {**tree, "name": f"{run.folder.name[:90]}-best"}, comment)
    hardware, checkpoint = result.trainings[0].hardware, run.checkpoint_hash()
    stamp = Stamp(identity=run.identity.tree, cpu_s=chosen.cpu_s, wall_s=0.0, hardware=hardware, checkpoint=checkpoint)
    with whole_file(run.folder / STAMP) as draft:
        draft.write_text(stamp.model_dump_json(indent=1), encoding="utf-8")
