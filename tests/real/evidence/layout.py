"""Lay out the working folder of measurements, and derive the runs of a cell."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from functools import cache
from pathlib import Path

from pmmrec.atomic import whole_file
from pmmrec.data.cut import cut_users
from pmmrec.data.domain import Domain
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.data.info import DOMAIN_FILE
from pmmrec.data.write import record_of
from pmmrec.errors import DataError
from pmmrec.settings import Tree
from pmmrec.train.finish import CHECKPOINT_FOLDER
from pmmrec.tuning.results import BEST_FILE
from tests.real.evidence.identity import Identities
from tests.real.evidence.plan import (
    SCRATCH,
    BaselinesCell,
    EvidencePlan,
    FinetuneCell,
    PlannedSearch,
    StartingCell,
    ZeroShotCell,
    domain_of,
)
from tests.real.evidence.runs import EVALUATION_FOLDER, Run
from tests.real.evidence.vectors import store_features

TABLES = ("items.parquet", "interactions.parquet")


class Layout:
    """The working folder; none of it is committed."""

    def __init__(self, home: Path, plan: EvidencePlan, data: Path, cache: Path | None) -> None:
        self.home, self._plan, self._data, self._cache = home, plan, data, cache

    def domain(self, name: str) -> Path:
        return self.home / "domains" / name

    def cell(self, cell_id: str) -> Path:
        return self.home / "cells" / cell_id

    def checkpoint(self, pretraining: str) -> Path:
        return self.home / "pretrained" / pretraining / CHECKPOINT_FOLDER

    def baselines(self, cell_id: str, cell: BaselinesCell) -> dict[int | None, Path]:
        """The folder of the ranks of baselines, by the seed that draws the users; None: all of them."""
        folder = self.cell(cell_id)
        return {None: folder} if cell.seeds is None else {seed: folder / f"seed-{seed}" for seed in cell.seeds}

    def has_data(self, name: str) -> bool:
        """Whether the source files of a domain are available."""
        return all((self._data / self._plan.domains[name].folder / table).is_file() for table in TABLES)

    def is_imported(self, name: str) -> bool:
        """Whether a domain is imported as planned, from the source files as they are now, if available."""
        kept = self._note(name)
        return kept is not None and self._is_there(name) and _is_same(kept, self._origin(name, kept))

    def is_outdated(self, name: str) -> bool:
        """Whether a domain is imported from source files that have changed since."""
        return self._is_there(name) and self.has_data(name) and not self.is_imported(name)

    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the domains that are imported as planned."""
        names = [name for name in self._plan.domains if self.is_imported(name)]
        return {name: Domain.open(self.domain(name)).fingerprint for name in names}

    def bring(self, name: str) -> bool:
        """Import a domain unless it is imported as planned; returns whether it was imported now.

        DataError if its files are missing or invalid.
        """
        kept, planned, folder = self._note(name), self._plan.domains[name], self.domain(name)
        origin = self._origin(name, kept or {})
        if self.is_imported(name):
            if self.has_data(name) and {**(kept or {}), **origin} != kept:
                self._write_note(name, {**(kept or {}), **origin})  # spares the next call from reading touched files
            return False
        if not self.has_data(name):
            raise DataError(f"{self._data / planned.folder}: lacks {' or '.join(TABLES)}, needed for {name}")
        shutil.rmtree(folder, ignore_errors=True)
        items, interactions = (self._data / planned.folder / table for table in TABLES)
        if planned.cut is not None:
            items, interactions = cut_users(items, interactions, planned.cut, self.home / "cuts" / name)
        images = self._data / planned.images if planned.images else None
        tables = {"items": items, "interactions": interactions, "images": images}
        import_table(TableImport(**tables, name=name, out=folder, k_core=planned.k_core, num_threads=2))
        store_features(folder, planned)
        self._write_note(name, origin)
        return True

    def pretraining(self, name: str, identities: Identities) -> Run:
        planned = self._plan.pretrainings[name]
        sources = json.dumps([str(self.domain(source)) for source in planned.sources])
        settings = [*planned.overrides, f"data.sources={sources}", f"seed={planned.seed}", "rank_test=false"]
        if planned.judged_by is not None:
            settings.append(f"validation.domain={json.dumps(str(self.domain(planned.judged_by)))}")
        where = self._place(self.home / "pretrained", name)
        return Run(
            label=_pretraining_label(name),
            folder=self.home / "pretrained" / name,
            arguments=("pretrain", planned.recipe, *settings, *where),
            identity=identities.pretraining(name),
            keeps_checkpoint=True,
        )

    def before(self, cell_id: str, identities: Identities) -> list[Run]:
        """The runs whose results the runs of a cell need: a pretraining, then a search."""
        cell = self._plan.measured[cell_id]
        start = getattr(cell, "start_from", SCRATCH)
        runs = [] if start == SCRATCH else [self.pretraining(start, identities)]
        if isinstance(cell, FinetuneCell) and cell.search is not None:
            runs.append(self.search(cell_id, identities))
        if isinstance(cell, FinetuneCell):
            runs += [self.pretraining(name, identities) for name in cell.tuned]
        return runs

    def search(self, cell_id: str, identities: Identities) -> Run:
        """The search for the settings of a cell; the test targets are not ranked."""
        cell, planned = self._plan.measured[cell_id], self._plan.search_of(cell_id)
        if not isinstance(cell, FinetuneCell) or planned is None or planned.domain is None:
            raise ValueError(f"{cell_id}: has no search")
        folder = self.home / "searches" / planned.domain / _search_name(cell, planned)
        cache = (f"cache={json.dumps(str(self._cache))}",) if self._cache else ()
        settings = (*cell.overrides, f"hub={json.dumps(str(self.home / 'hub'))}", *cache)
        limits = ("--space", str(planned.file), "--trials", str(planned.trials), "--seed", str(planned.seed))
        where = ("--name", folder.name, "--runs", str(folder.parent))
        return Run(
            label=f"search {planned.domain}/{folder.name}",
            folder=folder,
            arguments=(
                *("tune", cell.recipe, *settings, *limits, *where),
                *("--from", self._start(cell), "--on", str(self.domain(planned.domain))),
            ),
            identity=identities.search(cell_id),
            needs=_needs(cell.start_from),
            made=BEST_FILE,
            resumes=True,
            start=None if cell.start_from == SCRATCH else self.checkpoint(cell.start_from),
        )

    def runs(self, cell_id: str, identities: Identities) -> dict[int | None, Run]:
        """The runs of a cell by seed: none for baselines, one with seed None for zero-shot."""
        cell = self._plan.measured[cell_id]
        if isinstance(cell, FinetuneCell):
            return {seed: self._finetuning(cell_id, cell, seed, identities) for seed in cell.seeds}
        if isinstance(cell, ZeroShotCell):
            return {None: self._zero_shot(cell_id, cell, identities)}
        return {}

    def _finetuning(self, cell_id: str, cell: FinetuneCell, seed: int, identities: Identities) -> Run:
        name, domain = f"seed-{seed}", str(self.domain(domain_of(cell_id)))
        folder = self.cell(cell_id) / name
        settings = (f"seed={seed}", *self._place(self.cell(cell_id), name))
        if cell.users is not None:
            settings += (f"data.users={{sample: {cell.users}, seed: {seed}}}",)
        after: tuple[str, ...] = ()
        if self._plan.targets == "validation" or cell.blend:
            settings += ("rank_test=false",)
            after = self._evaluation(cell, str(folder / CHECKPOINT_FOLDER), domain, folder / EVALUATION_FOLDER)
        recipe, needs = (cell.recipe, *cell.overrides), (*_needs(cell.start_from), *map(_pretraining_label, cell.tuned))
        for weights, place in cell.weights.items():
            pretraining, _, part = place.partition("/")
            settings += ("--weights", f"{weights}={self.checkpoint(pretraining) / part}")
        if cell.search is not None:
            search = self.search(cell_id, identities)
            recipe, needs = (str(search.folder / BEST_FILE),), (search.label,)
        return Run(
            label=f"{cell_id} seed {seed}",
            folder=folder,
            arguments=("finetune", *recipe, *settings, "--from", self._start(cell), "--on", domain),
            after=after,
            identity=identities.run(cell_id, seed),
            needs=needs,
            start=None if cell.start_from == SCRATCH else self.checkpoint(cell.start_from),
        )

    def _zero_shot(self, cell_id: str, cell: ZeroShotCell, identities: Identities) -> Run:
        folder, domain = self.cell(cell_id) / "zero-shot", str(self.domain(domain_of(cell_id)))
        checkpoint = str(self.checkpoint(cell.start_from))
        popularity = () if cell.popularity is None else ("--popularity", str(cell.popularity))
        return Run(
            label=f"{cell_id} zero-shot",
            folder=folder,
            arguments=(*self._evaluation(cell, checkpoint, domain, folder), *popularity),
            identity=identities.run(cell_id, None),
            needs=_needs(cell.start_from),
            start=self.checkpoint(cell.start_from),
        )

    def _evaluation(self, cell: StartingCell, checkpoint: str, domain: str, out: Path) -> tuple[str, ...]:
        """Rank the targets of the plan with a checkpoint; `out` is a new folder, whose name becomes that of the row."""
        cache = ("--cache", str(self._cache)) if self._cache else ()
        scenario = () if self._plan.targets == "test" else ("--scenario", self._plan.targets)
        blend = ("--blend", "auto") if cell.blend else ()
        return ("evaluate", checkpoint, domain, "--name", out.name, "--out", str(out), *scenario, *blend, *cache)

    def _start(self, cell: FinetuneCell) -> str:
        return SCRATCH if cell.start_from == SCRATCH else str(self.checkpoint(cell.start_from))

    def _place(self, runs: Path, name: str) -> tuple[str, ...]:
        cache = (f"cache={json.dumps(str(self._cache))}",) if self._cache else ()
        return (f"name={name}", f"runs={json.dumps(str(runs))}", f"hub={json.dumps(str(self.home / 'hub'))}", *cache)

    def _is_there(self, name: str) -> bool:
        return (self.domain(name) / DOMAIN_FILE).is_file()

    def _note_path(self, name: str) -> Path:
        return self.home / "domains" / f"{name}.json"

    def _note(self, name: str) -> Tree | None:
        """The recorded origin of an imported domain; None if there is no record."""
        try:
            kept: Tree = json.loads(self._note_path(name).read_text(encoding="utf-8"))
            sizes = kept.pop("bytes", {})  # the only facts about files in older records
            return {"files": {file: {"num_bytes": size} for file, size in sizes.items()}, **kept}
        except (OSError, ValueError, AttributeError, TypeError):
            return None

    def _write_note(self, name: str, origin: Tree) -> None:
        with whole_file(self._note_path(name)) as draft:
            draft.write_text(json.dumps(origin, indent=1), encoding="utf-8")

    def _origin(self, name: str, kept: Tree) -> Tree:
        """The planned origin of a domain with its source files; unchanged files are not read again."""
        planned = self._plan.domains[name]
        paths = [self._data / planned.folder / table for table in TABLES]
        files = {path.name: _file(path, kept.get("files", {}).get(path.name, {})) for path in paths if path.is_file()}
        pictures = self._data / planned.images if planned.images else None
        seen = {"pictures": _listing(pictures)} if pictures is not None and pictures.is_dir() else {}
        return {**planned.model_dump(mode="json"), "files": files, **seen}


def _pretraining_label(name: str) -> str:
    return f"pretraining {name}"


def _search_name(cell: FinetuneCell, planned: PlannedSearch) -> str:
    """The same for cells that can share a search."""
    told = json.dumps([cell.recipe, cell.overrides, cell.start_from, planned.model_dump(mode="json")])
    return f"{cell.recipe.replace('/', '-')[:60]}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def _needs(start: str) -> tuple[str, ...]:
    return () if start == SCRATCH else (_pretraining_label(start),)


def _is_same(kept: Tree, now: Tree) -> bool:
    """Whether all facts known to both are equal, apart from modification times."""
    files = kept["files"]
    pairs = [(kept.get(key, value), value) for key, value in now.items() if key != "files"]
    for name, file in now["files"].items():
        pairs += [(files.get(name, {}).get(key, file[key]), file[key]) for key in ("num_bytes", "sha256")]
    return all(before == after for before, after in pairs)


def _file(path: Path, kept: Tree) -> Tree:
    stat = path.stat()
    place: Tree = {"num_bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}
    is_untouched = "sha256" in kept and place == {key: kept.get(key) for key in place}
    return {**place, "sha256": kept["sha256"] if is_untouched else _sha256(path, stat.st_size, stat.st_mtime_ns)}


@cache
def _sha256(path: Path, num_bytes: int, modified_ns: int) -> str:
    """The sha256 of a file, cached by its size and modification time."""
    del num_bytes, modified_ns
    return record_of(path).sha256


def _listing(folder: Path) -> str:
    """A hash of the names and sizes of the files in `folder`, which are too many to read."""
    with os.scandir(folder) as entries:
        lines = sorted(f"{entry.name} {entry.stat().st_size}\n" for entry in entries if entry.is_file())
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()
