"""Where does everything lie that measuring makes, and which runs does a cell need?"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from pmmrec.atomic import whole_file
from pmmrec.data.cut import cut_users
from pmmrec.data.domain import DOMAIN_FILE, Domain
from pmmrec.data.importers.table import TableImport, import_table
from pmmrec.errors import DataError
from pmmrec.report.evidence.identity import Identities
from pmmrec.report.evidence.plan import SCRATCH, EvidencePlan, FinetuneCell, PlannedDomain, ZeroShotCell, domain_of
from pmmrec.report.evidence.runs import Run
from pmmrec.train.finish import CHECKPOINT_FOLDER

TABLES = ("items.parquet", "interactions.parquet")


class Layout:
    """The folder of all that is made on the way; nothing of it is ever committed."""

    def __init__(self, home: Path, plan: EvidencePlan, data: Path, cache: Path | None) -> None:
        self._home, self._plan, self._data, self._cache = home, plan, data, cache

    def domain(self, name: str) -> Path:
        return self._home / "domains" / name

    def cell(self, cell_id: str) -> Path:
        return self._home / "cells" / cell_id

    def has_data(self, name: str) -> bool:
        """Whether the files are here that a domain is imported from."""
        return all((self._data / self._plan.domains[name].folder / table).is_file() for table in TABLES)

    def is_imported(self, name: str) -> bool:
        """Whether a domain is there as the plan has it, of files of this size as far as they are here."""
        planned, note = self._plan.domains[name], self._note(name)
        if not (self.domain(name) / DOMAIN_FILE).is_file() or not note.is_file():
            return False
        kept, now = json.loads(note.read_text(encoding="utf-8")), self._origin(planned)
        return all(kept[key] == now[key] for key in now if key != "bytes" or self.has_data(name))

    def fingerprints(self) -> dict[str, str]:
        """Of the domains that are imported as the plan has them."""
        names = [name for name in self._plan.domains if self.is_imported(name)]
        return {name: Domain.open(self.domain(name)).fingerprint for name in names}

    def bring(self, name: str) -> bool:
        """Import a domain unless it is there as planned; whether there was anything to do.

        DataError where its files are missing or break a rule.
        """
        if self.is_imported(name):
            return False
        planned, folder = self._plan.domains[name], self.domain(name)
        if not self.has_data(name):
            raise DataError(f"{self._data / planned.folder}: lacks {' or '.join(TABLES)}, needed for {name}")
        shutil.rmtree(folder, ignore_errors=True)
        items, interactions = (self._data / planned.folder / table for table in TABLES)
        if planned.cut is not None:
            items, interactions = cut_users(items, interactions, planned.cut, self._home / "cuts" / name)
        images = self._data / planned.images if planned.images else None
        tables = {"items": items, "interactions": interactions, "images": images}
        import_table(TableImport(**tables, name=name, out=folder, k_core=planned.k_core, num_threads=2))
        with whole_file(self._note(name)) as draft:
            draft.write_text(json.dumps(self._origin(planned), indent=1), encoding="utf-8")
        return True

    def pretraining(self, name: str, identities: Identities) -> Run:
        planned = self._plan.pretrainings[name]
        sources = json.dumps([str(self.domain(source)) for source in planned.sources])
        settings = [*planned.overrides, f"data.sources={sources}", f"seed={planned.seed}", "rank_test=false"]
        where = self._place(self._home / "pretrained", name)
        return Run(
            label=f"pretraining {name}",
            folder=self._home / "pretrained" / name,
            arguments=("pretrain", planned.recipe, *settings, *where),
            identity=identities.pretraining(name),
            keeps_checkpoint=True,
        )

    def runs(self, cell_id: str, identities: Identities) -> dict[int | None, Run]:
        """The runs of a cell by seed: none for floors, one without a seed for zero-shot."""
        cell = self._plan.measured[cell_id]
        if isinstance(cell, FinetuneCell):
            return {seed: self._finetuning(cell_id, cell, seed, identities) for seed in cell.seeds}
        if isinstance(cell, ZeroShotCell):
            return {None: self._zero_shot(cell_id, cell, identities)}
        return {}

    def _finetuning(self, cell_id: str, cell: FinetuneCell, seed: int, identities: Identities) -> Run:
        start = SCRATCH if cell.start_from == SCRATCH else str(self._checkpoint(cell.start_from))
        name, domain = f"seed-{seed}", str(self.domain(domain_of(cell_id)))
        settings = (*cell.overrides, f"seed={seed}", *self._place(self.cell(cell_id), name))
        return Run(
            label=f"{cell_id} seed {seed}",
            folder=self.cell(cell_id) / name,
            arguments=("finetune", cell.recipe, "--from", start, "--on", domain, *settings),
            identity=identities.run(cell_id, seed),
            needs=None if cell.start_from == SCRATCH else cell.start_from,
        )

    def _zero_shot(self, cell_id: str, cell: ZeroShotCell, identities: Identities) -> Run:
        folder, domain = self.cell(cell_id) / "zero-shot", str(self.domain(domain_of(cell_id)))
        cache = ("--cache", str(self._cache)) if self._cache else ()
        checkpoint = str(self._checkpoint(cell.start_from))
        popularity = () if cell.popularity is None else ("--popularity", str(cell.popularity))
        return Run(
            label=f"{cell_id} zero-shot",
            folder=folder,
            arguments=(
                "evaluate",
                checkpoint,
                domain,
                "--name",
                "zero-shot",
                "--out",
                str(folder),
                *popularity,
                *cache,
            ),
            identity=identities.run(cell_id, None),
            needs=cell.start_from,
        )

    def _checkpoint(self, pretraining: str) -> Path:
        return self._home / "pretrained" / pretraining / CHECKPOINT_FOLDER

    def _place(self, runs: Path, name: str) -> tuple[str, ...]:
        cache = (f"cache={json.dumps(str(self._cache))}",) if self._cache else ()
        return (f"name={name}", f"runs={json.dumps(str(runs))}", f"hub={json.dumps(str(self._home / 'hub'))}", *cache)

    def _note(self, name: str) -> Path:
        return self._home / "domains" / f"{name}.json"

    def _origin(self, planned: PlannedDomain) -> Mapping[str, object]:
        """What a domain is imported from: as planned, and the sizes of the files that are here."""
        files = [self._data / planned.folder / table for table in TABLES]
        sizes = {file.name: file.stat().st_size for file in files if file.is_file()}
        return {**planned.model_dump(mode="json"), "bytes": sizes}
