"""Compare a transfer with the same model trained from scratch, and say whether transfer helped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rich.console import RenderableType

from pmmrec.context import Backbone
from pmmrec.data.user_sample import UserSampleConfig
from pmmrec.errors import RecipeError
from pmmrec.evaluation.outcome import Outcome
from pmmrec.models.build import ModelConfig
from pmmrec.recipe import FinetuneRecipe
from pmmrec.report.comparison import Compared, ComparedSystem, compare, read_systems
from pmmrec.report.epochs import Best, best_epoch, judged_by, read_epochs
from pmmrec.settings import validate
from pmmrec.tables import Sentence
from pmmrec.train.run_folder import refuse_taken
from pmmrec.train.stages import learning_in_one
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.hub import find_weights


def scratch_twin(
    recipe: FinetuneRecipe, checkpoint: Checkpoint | None, weights: Mapping[str, Path], *, resume: bool = False
) -> FinetuneRecipe:
    """The recipe that trains the same model from scratch with the same seed; its run is called NAME-scratch.

    All parts are trained, without adapters. Backbones that name pretrained weights start from those. Raises
    RecipeError, before any training, if there is no transfer to compare with or the twin cannot run. With `resume` its
    run folder may exist already.
    """
    if checkpoint is None:
        raise RecipeError("--with-scratch: has no effect with `--from none`, which is from scratch; name a checkpoint")
    if not recipe.rank_test:
        raise RecipeError("--with-scratch: compares test metrics, but rank_test is false; leave one of the two out")
    model = recipe.model_from(checkpoint)
    named = {encoder.weights for encoder in model.item_encoder.encoders.values() if encoder.weights is not None}
    for name in weights:
        if name not in named:
            asked = ", ".join(sorted(named)) or "none"
            raise RecipeError(f"--weights {name}: has no effect, no encoder asks for these weights; asked for: {asked}")
    for name in sorted(named):
        find_weights(name, weights, warn=lambda _: None)  # the run itself warns
    tree = recipe.model_dump(mode="json") | {"name": f"{recipe.name}-scratch", "transfer": None, "adapters": None}
    tree["train"]["toward_start"] = None  # there is no checkpoint to be drawn to
    tree["train"]["stages"] = [stage.model_dump(mode="json") for stage in learning_in_one(recipe.train.stages)]
    twin = validate(FinetuneRecipe, tree | {"model": model.model_dump(mode="json")}, f"{recipe.name}, from scratch")
    if not resume:
        refuse_taken(twin.folder)
    return twin


def fewer_users(
    recipe: FinetuneRecipe, twin: FinetuneRecipe | None, counts: str | None, *, resume: bool = False
) -> list[tuple[FinetuneRecipe, FinetuneRecipe]]:
    """A recipe and its twin on fewer users: `100,300` gives NAME-users100 and NAME-users300, and their twins.

    Users are drawn by the seed of data.users, or else by that of the recipe. Raises RecipeError for numbers that cannot
    be read or have no twin to compare with, and for a run that exists unless it is resumed.
    """
    if counts is None:
        return []
    if twin is None:
        raise RecipeError("--users: compares with a twin from scratch on so many users; say --with-scratch too")
    words = [word.strip() for word in counts.split(",")]
    if not all(word.isdecimal() and int(word) for word in words) or len({*map(int, words)}) < len(words):
        raise RecipeError(f"--users {counts}: give different numbers of users, such as 100,300,1000")
    sample = recipe.data.users or UserSampleConfig(sample=1, seed=recipe.seed)
    pairs = []
    for count in sorted(map(int, words)):
        if recipe.data.users is not None and count >= recipe.data.users.sample:
            raise RecipeError(f"--users {count}: data.users.sample is {recipe.data.users.sample}; choose fewer")
        data = recipe.data.model_copy(update={"users": sample.model_copy(update={"sample": count})})
        ours = recipe.model_copy(update={"data": data, "name": f"{recipe.name}-users{count}"})
        theirs = twin.model_copy(update={"data": data, "name": f"{recipe.name}-users{count}-scratch"})
        pairs.append((ours, theirs))
    if not resume:
        for one in (one for pair in pairs for one in pair):
            refuse_taken(one.folder)
    return pairs


def weights_asked(model: ModelConfig, given: Mapping[str, Backbone], weights: Mapping[str, Path]) -> dict[str, Path]:
    """The weights that the transfer run itself uses; its twin may use more."""
    encoders = model.item_encoder.encoders.items()
    asked = {encoder.weights for part, encoder in encoders if part not in given}
    return {name: folder for name, folder in weights.items() if name in asked}


def against_scratch(transfer: Path, scratch: Path) -> list[RenderableType]:
    """Compare two run folders: a table, the epochs to the best, and whether transfer helped."""
    ours, theirs = systems = read_systems([str(transfer), str(scratch)])
    compared = compare(systems, against=theirs.name)
    bests = [_best(folder) for folder in (transfer, scratch)]
    return [
        *compared.tables,
        *compared.tests,
        *map(Sentence, _epoch_lines(transfer, systems, bests)),
        *map(Sentence, compared.lines()),
        *map(Sentence, _verdict(compared, ours, theirs)),
    ]


def _best(folder: Path) -> Best:
    return best_epoch(read_epochs(folder), judged_by(folder))


def _epoch_lines(transfer: Path, systems: list[ComparedSystem], bests: list[Best]) -> list[str]:
    metric = judged_by(transfer)
    lines = []
    for system, best in zip(systems, bests, strict=True):
        lines.append(
            f"{system.name}: best validation {metric.upper()} {best.value:.2%} at epoch {best.epoch} of {best.last}"
            f"{_seconds(system.outcomes[0])}"
        )
    ours, theirs = systems
    passed = [epoch.epoch for epoch in read_epochs(transfer) if epoch.metrics[metric] >= bests[1].value]
    reached = f"reached it at epoch {passed[0]}" if passed else "never reached it"
    lines.append(f"{theirs.name} needed {bests[1].epoch} epoch(s) to its best; {ours.name} {reached}")
    return lines


def _seconds(outcome: Outcome) -> str:
    return "" if outcome.training_s is None else f", {outcome.training_s:,.0f} s of training"


def _verdict(compared: Compared, ours: ComparedSystem, theirs: ComparedSystem) -> list[str]:
    """Say whether transfer helped; warn if it did harm."""
    shown = [difference for difference in compared.differences if difference.is_shown]
    better = [d.metric.upper() for d in shown if d.interval.mean > 0]
    worse = [d.metric.upper() for d in shown if d.interval.mean < 0]
    lines = []
    if worse:
        lines.append(
            f"warning: negative transfer: {theirs.name} beats {ours.name} on {', '.join(worse)}; what was learned on "
            "the sources does harm here. Load fewer parts (finetune/items, finetune/user), or train from scratch"
        )
    if better:
        lines.append(f"transfer paid: {ours.name} beats {theirs.name} on {', '.join(better)}")
    if not shown:
        lines.append(f"transfer neither paid nor did harm, as far as {_num_users(ours):,} users and one seed can show")
    return lines


def _num_users(system: ComparedSystem) -> int:
    return max(found.num_users for found in system.domains.values())
