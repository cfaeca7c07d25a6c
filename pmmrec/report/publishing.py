"""Publish checkpoints with a card that shows their metrics."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.evaluation.outcome import Outcome
from pmmrec.recipe import PretrainRecipe, recipe_class_for
from pmmrec.report.outcomes import measure_title, result_rows
from pmmrec.report.tables import names_at_all, shown_names, to_markdown
from pmmrec.settings import parse_yaml, read_yaml, validate
from pmmrec.zoo import files
from pmmrec.zoo.card import CardDomain, CardFigure, make_card
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.folder import RECIPE_NAME
from pmmrec.zoo.hub import PushOptions, push_checkpoint, refuse_unsound
from pmmrec.zoo.origin import Origin
from pmmrec.zoo.results import restate


def push(folder: Path, place: str, hub: Path, options: PushOptions) -> Origin:
    """Publish a checkpoint under a card that names `place`; returns its location and commit.

    The checkpoint itself is not changed. One without provenance keeps its card.
    """
    checkpoint = Checkpoint.open(folder)
    if not _is_told(checkpoint):
        return push_checkpoint(folder, place, hub, options)
    licence = str(read_yaml(checkpoint.folder / RECIPE_NAME).get("licence", "other"))
    refuse_unsound(folder, files.absent(checkpoint.folder, checkpoint.index.all_files))
    refuse_unsound(folder, files.changes(checkpoint.folder, checkpoint.index.files))  # the new index would accept them
    beside = checkpoint.folder.resolve().parent  # on the same file system, so that files can be linked
    with TemporaryDirectory(prefix="push-", dir=beside if os.access(beside, os.W_OK) else None) as scratch:
        draft = Path(scratch) / "checkpoint"
        for name in (*checkpoint.index.all_files, files.INDEX_NAME):
            files.link_or_copy(checkpoint.folder / name, draft / name)
        write_card(draft, _outcome_of(checkpoint), licence, place=place)
        return push_checkpoint(draft, place, hub, options)


def write_card(folder: Path, outcome: Outcome | None, licence: str, place: str) -> None:
    """Write metrics and a card into a checkpoint that people will load as `place`.

    If no test targets were ranked (`outcome` None, or of no domain) the card shows the validation metrics.
    """
    checkpoint = Checkpoint.open(folder)
    domains = checkpoint.provenance["domains"]
    origin = checkpoint.provenance["started_from"]
    recipe = (checkpoint.folder / RECIPE_NAME).read_text(encoding="utf-8")
    is_pretrained = recipe_class_for(parse_yaml(recipe, RECIPE_NAME)) is PretrainRecipe
    untransferred = "pretrained" if is_pretrained else "trained from scratch"
    tested = () if outcome is None else outcome.domains
    start = untransferred if origin == "none" else f"fine-tuned from {origin}"
    judges = ", ".join(checkpoint.provenance.get("judged_by", {}))
    judged = (
        f" Its epoch was chosen by the validation targets of {judges}, of which nothing was learned." if judges else ""
    )
    card = make_card(
        name=place,
        system=checkpoint.system,
        summary=f"A {checkpoint.system} model of width {checkpoint.index.width}, {start} on {', '.join(domains)}."
        f"{judged}",
        parts={name: entry.type for name, entry in checkpoint.held.items()},
        domains=[
            CardDomain(name, about["users"], about["items"], about["interactions"], tuple(about["modalities"]))
            for name, about in domains.items()
        ],
        recipe=recipe,
        results=_tested(outcome) if outcome is not None and tested else _validated(checkpoint.metrics),
        licence=licence,
        figures=[
            CardFigure(found.domain, name, at.mean, at.low, at.high, at.level, found.num_users)
            for found in tested
            for name, at in found.metrics.items()
            if name in shown_names(found.metrics)
        ],
        base_model=_repository(origin),
        commands=[
            f"pmmrec evaluate {place} DOMAIN",
            f"pmmrec finetune finetune/full --from {place} --on DOMAIN",
        ],
    )
    restate(folder, metrics=checkpoint.metrics if outcome is None else outcome.model_dump(mode="json"), card=card)


def _is_told(checkpoint: Checkpoint) -> bool:
    domains = checkpoint.provenance.get("domains")
    is_told = isinstance(domains, dict) and all(isinstance(about, dict) for about in domains.values())
    return is_told and "started_from" in checkpoint.provenance


def _outcome_of(checkpoint: Checkpoint) -> Outcome | None:
    """The outcome of the run that made the checkpoint; None if it ranked no test targets."""
    try:
        return validate(Outcome, checkpoint.metrics, "metrics.json")
    except (CheckpointError, RecipeError):
        return None


def _tested(outcome: Outcome) -> str:
    return "\n".join(
        to_markdown(rows, names_at_all(found.metrics), title=measure_title(found))
        for found, rows in result_rows([outcome])
    )


def _validated(metrics: Mapping[str, Any]) -> str:
    found = metrics.get("validation")
    shares = {name: found.get(name) for name in shown_names(found)} if isinstance(found, Mapping) else {}
    told = [f"{name.upper()} {share:.1%}" for name, share in shares.items() if isinstance(share, float)]
    return f"No test targets were ranked. On validation: {', '.join(told)}." if told else ""


def _repository(origin: str) -> str | None:
    """The name on the Hugging Face Hub of the checkpoint that training started from, if it is there."""
    return origin.removeprefix("hf://").partition("@")[0] if origin.startswith("hf://") else None
