"""How fast each parameter learns: groups of Adam or AdamW by part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator
from torch import nn
from typing_extensions import Self

from pmmrec.errors import RecipeError
from pmmrec.launch import Spread
from pmmrec.settings import Config
from pmmrec.train.rowwise import RowwiseAdam, Tables, choose_tables
from pmmrec.train.schedule import Schedule
from pmmrec.train.task import TrainingTask

Beta = Annotated[float, Field(ge=0, lt=1)]


class GroupConfig(Config):
    """What one part does differently; None keeps the value of the rest."""

    learning_rate: float | None = Field(None, ge=0)
    weight_decay: float | None = Field(None, ge=0)
    warmup: float | None = Field(None, ge=0, lt=1)


class OptimizerConfig(Config):
    """AdamW or Adam. `parts` is keyed by the start of a parameter's path, as `text_encoder.backbone` or `fusion`."""

    type: Literal["adamw", "adam"] = Field(
        "adamw",
        description="adamw: weights decay by themselves (arXiv 1711.05101). adam: weight_decay times a weight is added "
        "to its gradient, as an L2 penalty would (arXiv 1412.6980; `weight_decay` of torch's Adam).",
    )
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: float = Field(1e-8, gt=0)
    parts: dict[str, GroupConfig | None] = Field({}, description="Path -> what it does differently; null: nothing.")
    tables: Tables = Field(
        "auto",
        description="What a step updates of a table of item or user ids. whole: every row; one that it does not read "
        "decays, and goes on by its momentum. rows: those that it reads. auto: rows above 100,000, in one process.",
    )
    schedule: Schedule = Field(
        "constant", description="After warm-up; cosine and linear end at 0. Or settings of exponential, or of step."
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of all steps in which the rate rises from 0.")

    @property
    def groups(self) -> dict[str, GroupConfig]:
        """The parts that do something differently."""
        return {path: group for path, group in self.parts.items() if group is not None}

    @model_validator(mode="after")
    def _parts_differ(self) -> Self:
        for path, group in self.parts.items():
            if not path:
                raise ValueError("parts: one has no name; what holds for the rest is set beside parts, not in it")
            if group == GroupConfig():
                raise ValueError(f"parts.{path}: has no effect, it sets nothing; set a value or leave it out")
        return self


def all_parameter_paths(task: TrainingTask) -> dict[str, nn.Parameter]:
    """Parameters by part: `text_encoder.projection.weight`, `objectives.nid.head.weight`, ..."""
    parts = {**task.recommender.parts, "objectives": task.objectives}
    return {f"{part}.{name}": one for part, module in parts.items() for name, one in module.named_parameters()}


def begins_with(path: str, start: str) -> bool:
    """Whether a path is `start`, or lies below it."""
    return path == start or path.startswith(f"{start}.")


def parameter_paths(task: TrainingTask) -> dict[str, nn.Parameter]:
    """Those of `all_parameter_paths` that can learn. RecipeError for one that no checkpoint would hold."""
    paths = {path: parameter for path, parameter in all_parameter_paths(task).items() if parameter.requires_grad}
    unread = [part for part in task.unread if any(path.startswith(f"{part}.") for path in paths)]
    if unread:
        raise RecipeError(
            f"adapters: those of {', '.join(unread)} cannot learn, since no objective reads the part; leave them out, "
            "or add an objective that does"
        )
    missed = sum(p.requires_grad for p in task.parameters()) - len(paths)
    if missed:
        raise RecipeError(f"model: {missed} trainable tensors belong to no part; a checkpoint would lose them")
    return paths


def build_optimizer(task: TrainingTask, config: OptimizerConfig, spread: Spread = Spread.ONE) -> RowwiseAdam:
    """Adam or AdamW with one group for each entry of `config.groups` and one for the rest.

    The longest matching path wins. Tables of ids may learn by rows; see `choose_tables`. RecipeError where nothing
    trains or an entry matches no trainable parameter.
    """
    members: dict[str, list[nn.Parameter]] = {path: [] for path in ("", *config.groups)}
    for path, parameter in parameter_paths(task).items():
        matches = [start for start in members if not start or begins_with(path, start)]
        members[max(matches, key=len)].append(parameter)
    idle = [start for start, group in members.items() if start and not group]
    if idle:
        heads = sorted({path.split(".")[0] for path in parameter_paths(task)})
        raise RecipeError(
            f"train.optimizer.parts.{idle[0]}: no trainable parameter starts so; trainable parts: {', '.join(heads)}"
        )
    groups = [
        {"params": group, "name": start or "rest", **_rates(config, config.groups.get(start, GroupConfig()))}
        for start, group in members.items()
        if group
    ]
    if not groups:
        raise RecipeError("model: no parameter is trainable; raise trainable_blocks or choose another plan")
    tables = choose_tables(task, config.tables, spread)
    rules = {"lr": config.learning_rate, "betas": config.betas, "eps": config.eps}
    return RowwiseAdam(groups, tables, decoupled_weight_decay=config.type == "adamw", **rules)


def _rates(config: OptimizerConfig, group: GroupConfig) -> Mapping[str, float]:
    return {
        "lr": config.learning_rate if group.learning_rate is None else group.learning_rate,
        "weight_decay": config.weight_decay if group.weight_decay is None else group.weight_decay,
    }
