"""Plan which parts of a checkpoint a model loads, and account for every tensor of both."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from pmmrec.adapters import Host
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.family import PartGroup
from pmmrec.models.build import ModelConfig, ParameterRow
from pmmrec.models.recommender import Recommender
from pmmrec.objectives import objectives as objective_family
from pmmrec.settings import Config, validate
from pmmrec.tables import Cell, PlainTable
from pmmrec.zoo.about import OBJECTIVES
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.parts import fill, misfits, part_paths

EVERY = "*"
ITEMS = "item_encoder"
Action = Literal["loaded", "fresh", "dropped"]
Names = tuple[str, ...]
Groups = Mapping[str, PartGroup | None]  # what each part works on, by its name


class TransferPlan(Config):
    """Which parts to load, start fresh, drop and train, by name (`text_encoder`, `fusion`, ...).

    A recipe gives a name from `NAMED` or the fields. `*` stands for every part not named elsewhere, `item_encoder` for
    all parts that compute item vectors, `objectives` for all heads of pretraining. A model that is derived from the
    plan has no part that is dropped and not fresh.
    """

    load: Names = Field((), description="Parts of the checkpoint that the model loads.")
    fresh: Names = Field((), description="Parts of the model that keep their initial weights.")
    drop: Names = Field((), description="Parts of the checkpoint that are not used; `objectives` unless loaded.")
    train: Names | None = Field(None, description="Parts that are trained, all others are frozen; null: as configured.")

    @model_validator(mode="before")
    @classmethod
    def _look_up(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if value not in NAMED:
            raise ValueError(
                f"no plan is called {value!r}; there are {', '.join(NAMED)}, or give load, fresh, drop, train"
            )
        return NAMED[value].model_dump()

    @model_validator(mode="after")
    def _name_each_part_once(self) -> Self:
        for field, names in (("load", self.load), ("fresh", self.fresh), ("drop", self.drop)):
            if len(set(names)) < len(names):
                raise ValueError(f"{field} names a part twice; keep one")
        for field, names in (("fresh", self.fresh), ("drop", self.drop)):
            if both := set(self.load) & set(names) - {EVERY}:
                raise ValueError(f"{', '.join(sorted(both))} is in load and in {field}; keep one")
        return self

    def loads(self, theirs: Groups) -> Names:
        """The parts of a checkpoint that the plan loads into a model that has all parts the plan keeps."""
        named = {*_parts_of(self.load, theirs), *_parts_of(self.fresh, theirs), *_parts_of(self.drop, theirs)}
        wanted = _spell(_parts_of(self.load, theirs), [name for name in theirs if name not in named])
        return tuple(name for name in theirs if name in wanted)

    def keeps(self, theirs: Groups) -> Names:
        """The parts of a checkpoint that a model derived from this plan has, loaded or fresh."""
        load = self.loads(theirs)
        fresh = _spell(_parts_of(self.fresh, theirs), [name for name in theirs if name not in load])
        return tuple(name for name in theirs if name in load or name in fresh)

    def spelled_out(self, theirs: Groups, ours: Groups) -> TransferPlan:
        """The same plan with every part named. Raises RecipeError where a part is unknown or not mentioned."""
        heads: Groups = {OBJECTIVES: objective_family.group}
        parts = {name: group for name, group in ours.items() if name != OBJECTIVES}
        common = {name: group for name, group in theirs.items() if name in ours}
        _refuse_unknown("load", "checkpoint and model", self.load, common)
        _refuse_unknown("fresh", "the model", self.fresh, {**parts, **heads})
        _refuse_unknown("drop", "the checkpoint", self.drop, {**theirs, **heads})
        _refuse_unknown("train", "the model", self.train or (), parts)
        wanted = _parts_of(self.load, common), _parts_of(self.fresh, ours), _parts_of(self.drop, theirs)
        named = {name for names in wanted for name in names}
        load = _spell(wanted[0], [name for name in common if name not in named and name != OBJECTIVES])
        fresh = _spell(wanted[1], [name for name in ours if name not in load])
        drop = _spell(wanted[2], [name for name in theirs if name not in load])
        fresh += tuple(name for name in ours if name == OBJECTIVES and name not in {*load, *fresh})
        drop += tuple(name for name in theirs if name == OBJECTIVES and name not in {*load, *drop})
        lost = [f"{name} of the checkpoint (load it or drop it)" for name in theirs if name not in {*load, *drop}]
        unmet = [name for name in ours if name not in {*load, *fresh}]
        lost += [f"{name} of the model (load it or start it fresh)" for name in unmet]
        if lost:
            follow = (
                "; with model=null the model is the checkpoint's, less what is dropped" if {*unmet} & {*drop} else ""
            )
            raise RecipeError(f"transfer: the plan does not say what to do with {', '.join(lost)}{follow}")
        train = None if self.train is None else _spell(_parts_of(self.train, parts), [*parts])
        return validate(TransferPlan, {"load": load, "fresh": fresh, "drop": drop, "train": train}, "transfer")


FULL = TransferPlan(load=(EVERY,))
NAMED: Mapping[str, TransferPlan] = {  # the settings of table V of the paper, and `frozen`
    "full": FULL,
    "items": TransferPlan(load=(ITEMS,), fresh=("user_encoder",), drop=("user_encoder",)),
    "user": TransferPlan(load=("user_encoder",), fresh=(EVERY,), drop=(EVERY,)),
    "text": TransferPlan(load=("text_encoder", "user_encoder"), drop=(EVERY,)),
    "vision": TransferPlan(load=("vision_encoder", "user_encoder"), drop=(EVERY,)),
    "frozen": TransferPlan(load=(EVERY,), train=("user_encoder",)),
}


@dataclass(frozen=True)
class TransferRow:
    """What was done with one part, or with one head `objectives/NAME`."""

    part: str
    action: Action
    tensors: int
    parameters: int


@dataclass(frozen=True)
class TransferReport:
    """What was done with every part of a checkpoint and of a model."""

    rows: tuple[TransferRow, ...]

    @property
    def loaded(self) -> tuple[str, ...]:
        """The parts of the model that were loaded from the checkpoint."""
        return tuple(row.part for row in self.rows if row.action == "loaded")

    def table(self, sizes: Sequence[ParameterRow]) -> PlainTable:
        """The rows with the number of trainable parameters of each part, from the `sizes` of the model in training."""
        learning = {size.part: size.trainable for size in sizes}
        rows: list[list[Cell]] = [
            [*astuple(row), None if row.action == "dropped" else learning.get(row.part, 0)] for row in self.rows
        ]
        return PlainTable("", ["part", "action", "tensors", "parameters", "learning"], rows)


def model_after(plan: TransferPlan, checkpoint: Checkpoint) -> ModelConfig:
    """The checkpoint's model without the parts that the plan drops. Raises RecipeError where too little is left."""
    kept, config = plan.keeps(checkpoint.part_groups), checkpoint.model_config
    try:
        return config.model_copy(update={"item_encoder": config.item_encoder.keeping(kept)})
    except ValueError as error:
        raise RecipeError(
            f"transfer: keeps {', '.join(kept) or 'nothing'} of {checkpoint.folder}, which holds "
            f"{', '.join(checkpoint.parts)}: that makes no item encoder; choose a plan for what it holds"
        ) from error


def plan_full(checkpoint: Checkpoint, recommender: Recommender) -> TransferPlan:
    """A plan that loads all common parts, starts the rest of the model fresh and drops the rest of the checkpoint.

    Raises RecipeError where there are no common parts, since training would start from scratch.
    """
    load = tuple(name for name in checkpoint.parts if name in recommender.parts)
    if not load:
        raise RecipeError(
            f"transfer: {checkpoint.folder} and the model have no part in common; "
            f"it holds {', '.join(checkpoint.parts)}, the model has {', '.join(recommender.parts)}"
        )
    return TransferPlan(
        load=load,
        fresh=tuple(name for name in recommender.parts if name not in load),
        drop=tuple(name for name in checkpoint.parts if name not in load),
    )


def apply(
    plan: TransferPlan,
    checkpoint: Checkpoint,
    recommender: Recommender,
    objectives: Mapping[str, nn.Module] | None = None,
) -> TransferReport:
    """Apply the plan to `recommender` and to the heads of `objectives`, in place, or change nothing.

    Raises RecipeError where the plan does not mention a part, CheckpointError that lists every tensor that is missing,
    unknown or of another shape.
    """
    heads = {name: head for name, head in (objectives or {}).items() if head.state_dict()}
    part_paths(recommender)
    plan = plan.spelled_out(
        {**checkpoint.part_groups, **({OBJECTIVES: objective_family.group} if checkpoint.objectives else {})},
        {**recommender.part_groups, **({OBJECTIVES: objective_family.group} if heads else {})},
    )
    _refuse_idle(plan, recommender)
    targets: dict[str, nn.Module] = {name: recommender.parts[name] for name in plan.load if name != OBJECTIVES}
    states = {name: checkpoint.part_state(name, part) for name, part in targets.items()}
    problems: list[str] = []
    if OBJECTIVES in plan.load:
        problems = _other_heads(checkpoint, heads)
        common = [name for name in heads if name in checkpoint.objectives]
        targets |= _with_folder({name: heads[name] for name in common})
        states |= {f"{OBJECTIVES}/{name}": checkpoint.objective_state(name) for name in common}
    problems += [line for name, part in targets.items() for line in misfits(name, states[name], part)]
    if problems:
        raise CheckpointError(
            "\n".join([f"{checkpoint.folder}: does not fit the model; nothing was loaded", *problems])
        )
    dropped = _dropped(plan, checkpoint)
    for name, part in targets.items():
        fill(part, states[name])
    if plan.train is not None:
        for name, part in recommender.parts.items():
            if name not in plan.train:
                freeze(part)
    return TransferReport((*_kept(plan, {**recommender.parts, **_with_folder(heads)}), *dropped))


def freeze(part: nn.Module) -> None:
    """Freeze a part and keep it in eval mode when `train()` is called on a parent module.

    A part with blocks is informed, since the outputs of all frozen blocks may then be cached.
    """
    host: Host | None = getattr(part, "host", None)
    if host is not None:
        host.learns_from_top(0)
    part.requires_grad_(requires_grad=False)
    part.eval()
    part.register_forward_pre_hook(_stay_in_eval)


def _stay_in_eval(part: nn.Module, _: Any) -> None:
    if part.training:
        part.eval()


def _refuse_unknown(field: str, owner: str, names: Iterable[str], known: Groups) -> None:
    groups = {EVERY, *([ITEMS] if _parts_of((ITEMS,), known) else [])}
    for name in names:
        if name not in {*known, *groups}:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(known) or 'none'}"
            raise RecipeError(f"transfer.{field}: {name!r} is not a part of {owner}; {hint}")


def _parts_of(names: Names, known: Groups) -> Names:
    """The names, with `item_encoder` replaced by the known parts of the item encoder."""
    items = [name for name, group in known.items() if group == "items"]
    return tuple(part for name in names for part in (items if name == ITEMS else (name,)))


def _spell(names: Names, others: list[str]) -> Names:
    """The names, with `*` replaced by those of `others` that are not among them."""
    plain = tuple(name for name in names if name != EVERY)
    return plain + tuple(name for name in others if name not in plain) if EVERY in names else plain


def _refuse_idle(plan: TransferPlan, recommender: Recommender) -> None:
    """Raise RecipeError, before any tensor is copied, where no parameter would be trained."""
    if plan.train is None:
        return
    if not any(tensor.requires_grad for name in plan.train for tensor in recommender.parts[name].parameters()):
        raise RecipeError(
            f"transfer.train: {', '.join(plan.train) or 'no part'}: nothing there can be trained; name another"
        )


def _other_heads(checkpoint: Checkpoint, heads: Mapping[str, nn.Module]) -> list[str]:
    missing, extra = set(heads) - set(checkpoint.objectives), set(checkpoint.objectives) - set(heads)
    found = {"missing in": missing, "unknown to the model in": extra}
    return [
        f"  {OBJECTIVES}: {what} the checkpoint: {', '.join(sorted(names))}" for what, names in found.items() if names
    ]


def _with_folder(heads: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    return {f"{OBJECTIVES}/{name}": head for name, head in heads.items()}


def _kept(plan: TransferPlan, modules: Mapping[str, nn.Module]) -> list[TransferRow]:
    rows = []
    for name, module in modules.items():
        action: Action = "loaded" if name.split("/")[0] in plan.load else "fresh"
        sizes = [tensor.numel() for tensor in module.state_dict().values()]
        rows.append(TransferRow(name, action, len(sizes), sum(sizes)))
    return rows


def _dropped(plan: TransferPlan, checkpoint: Checkpoint) -> list[TransferRow]:
    heads = {f"{OBJECTIVES}/{name}": entry for name, entry in checkpoint.objectives.items()}
    sizes = {
        name: checkpoint.sizes(entry)
        for name, entry in {**checkpoint.parts, **heads}.items()
        if name.split("/")[0] in plan.drop
    }
    return [TransferRow(name, "dropped", len(of_part), sum(of_part)) for name, of_part in sizes.items()]
