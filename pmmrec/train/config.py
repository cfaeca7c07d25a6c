"""The settings of a training."""

from __future__ import annotations

from pydantic import Field, model_validator
from typing_extensions import Self

from pmmrec.settings import Config
from pmmrec.train.accumulate import AccumulateConfig
from pmmrec.train.average import AverageConfig
from pmmrec.train.nonfinite import NonfiniteConfig
from pmmrec.train.optim import OptimizerConfig
from pmmrec.train.stages import StageConfig, check_stages
from pmmrec.train.state import StateConfig


class TrainConfig(Config):
    """How long and how fast."""

    epochs: int = Field(10, ge=0, description="At most this many; early stopping may end sooner.")
    minutes: float | None = Field(
        None,
        gt=0,
        description="Training ends before an epoch that would take it, without validation, past so many minutes; one "
        "epoch is always trained. null: no limit.",
    )
    batch_users: int = Field(64, ge=1, description="Users of one step, over all processes.")
    gather: bool | None = Field(
        None,
        description="Negatives are those of all processes, each item encoded by one; null: where there are several. "
        "false: those of each process's own users.",
    )
    accumulate: AccumulateConfig = AccumulateConfig()
    checkpoint_activations: bool = Field(
        False, description="Blocks of the encoders keep no activations: they are computed once more on the way back."
    )
    optimizer: OptimizerConfig = OptimizerConfig()
    stages: tuple[StageConfig, ...] = Field(
        (), description="Which parameters learn in which epochs, stage after stage; none: all, as the plan says."
    )
    toward_start: float | None = Field(
        None,
        gt=0,
        description="Strength of a decay toward the weights of the checkpoint, for the parts that it gave (L2-SP); "
        "null: none.",
    )
    average: AverageConfig | None = Field(
        None, description="Validate and keep an average of the weights over the steps; null: those of the last step."
    )
    clip_norm: float | None = Field(1.0, gt=0, description="Largest norm of all gradients together; null: no clipping.")
    log_every: int = Field(20, ge=1, description="Steps between two log lines.")
    on_nonfinite: NonfiniteConfig = NonfiniteConfig()
    state: StateConfig = StateConfig()
    step_minutes: float = Field(
        30.0,
        gt=0,
        description="A step that takes longer, or a process that is silent for longer, ends the run, which says which "
        "process it was and in which step.",
    )
    phase_hours: float = Field(
        24.0,
        gt=0,
        description="As step_minutes, of what lies between steps: preparing, validating, saving, ranking.",
    )

    @property
    def epochs_before_last_stage(self) -> int:
        """How many epochs the stages before the last one take; 0 where there is one stage or none."""
        return sum(stage.epochs or 0 for stage in self.stages[:-1])

    @model_validator(mode="after")
    def _stages_follow_one_another(self) -> Self:
        check_stages(self.stages)
        return self
