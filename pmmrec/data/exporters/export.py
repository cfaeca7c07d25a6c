"""Export a domain in one of the layouts that are known, whole or not at all."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from pmmrec.data.domain import Domain
from pmmrec.data.exporters.content import IMAGES_FOLDER, write_pictures
from pmmrec.data.exporters.tabbed import write_mmrec, write_recbole
from pmmrec.data.exporters.tables import has_pictures, write_csv_tables, write_parquet_tables
from pmmrec.data.splits import Split, SplitField, split_of
from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
from pmmrec.data.write import new_folder
from pmmrec.errors import RecipeError
from pmmrec.settings import Config, PartConfig, Place

ExportKind = Literal["parquet", "csv", "recbole", "mmrec"]


class ExportConfig(Config):
    """Settings of an export."""

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ({"domain": "shop", "out": "files", "kind": "csv"},)
    domain: Place = Field(description="Folder of the domain.")
    out: Place = Field(description="Folder to make; RecBole and MMRec take its name for that of the data set.")
    kind: ExportKind = Field(description="The layout: two tables in parquet or csv, or that of RecBole or MMRec.")
    split: SplitField | None = Field(
        None, description="Which part each interaction is of; None: not written. MMRec needs one: leave-one-out."
    )
    images: bool = Field(True, description="Whether pictures are written, where the domain has some.")
    escape_formulas: bool = Field(
        False, description="Put a ' before values of a csv that a spreadsheet would compute, such as =cmd()."
    )

    @model_validator(mode="after")
    def _has_an_effect(self) -> Self:
        if self.escape_formulas and self.kind not in ("csv", "mmrec"):
            raise ValueError(f"escape_formulas has no effect on {self.kind}, which no spreadsheet opens; leave it out")
        return self


def export_domain(config: ExportConfig) -> list[str]:
    """Write a domain in another layout. Returns lines on what was written.

    Ids, texts, further columns and the order of users, items and interactions are those of the domain once the files
    are imported again. Pictures are the stored ones, which an import encodes anew.

    Raises RecipeError where `out` exists, DataError for ids that the layout cannot hold.
    """
    domain = Domain.open(config.domain)
    split = None if config.split is None else _parts_of(config.split, domain)
    if split is None and config.kind == "mmrec":
        split = split_of(LeaveOneOutConfig(), domain)
    with_images = config.images and has_pictures(domain)
    with new_folder(config.out) as (folder, _):
        notes = _write(config, domain, split, folder, with_images=with_images)
        if with_images and config.kind != "parquet":
            left_out = write_pictures(domain, folder / IMAGES_FOLDER)
            notes += [] if left_out is None else [left_out]
        files = sorted(path.name + ("/" if path.is_dir() else "") for path in folder.iterdir())
    counts = f"{domain.num_items:,} items, {domain.num_users:,} users, {domain.num_interactions:,} interactions"
    again = " ".join(map(shlex.quote, _import_command(config, domain, with_images=with_images)))
    lines = [f"{config.out}: {counts} of {domain.name}, in {', '.join(files)}", *notes]
    return lines if again == "" else [*lines, f"to import them: {again}"]


def _parts_of(config: PartConfig, domain: Domain) -> Split:
    split = split_of(config, domain)
    if split.ranks_lists:
        raise RecipeError(f"--split {config.type}: holds lists of items, which no export writes")
    return split


def _write(config: ExportConfig, domain: Domain, split: Split | None, folder: Path, *, with_images: bool) -> list[str]:
    name = config.out.name
    if config.kind == "csv":
        return write_csv_tables(domain, folder, split, escapes=config.escape_formulas)
    if config.kind == "parquet":
        write_parquet_tables(domain, folder, split, with_images=with_images)
    elif config.kind == "recbole":
        return write_recbole(domain, folder, name, split)
    elif split is not None:
        return write_mmrec(domain, folder, name, split, escapes=config.escape_formulas)
    return []


def _import_command(config: ExportConfig, domain: Domain, *, with_images: bool) -> list[str]:
    """The words of a command that imports the files; none where the parts of a split lie in files of their own."""
    out = str(config.out)
    if config.kind in ("csv", "parquet"):
        files = [f"{out}/{table}.{config.kind}" for table in ("items", "interactions")]
        words = ["table", "--items", files[0], "--interactions", files[1]]
    elif config.kind == "recbole" and config.split is not None:
        return []
    else:
        own = ["--items", f"{out}/items.csv", "--set", "ids=original"] if config.kind == "mmrec" else []
        words = [config.kind, out, *own]
    if with_images and config.kind != "parquet":
        words += ["--images", f"{out}/{IMAGES_FOLDER}"]
    return ["pmmrec", "data", "import", *words, "--k-core", "none", "--name", domain.name, "--out", "DOMAIN"]
