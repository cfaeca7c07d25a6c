"""Recipes: the settings of a whole run, composed of the settings of its parts."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, TypeVar

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator
from torch import nn
from typing_extensions import Self

from pmmrec.adapters.plan import AdapterPlan
from pmmrec.context import Backbone
from pmmrec.data.batches import DataConfig
from pmmrec.data.domain import Domain
from pmmrec.data.prefix import PrefixConfig
from pmmrec.data.splits import Split
from pmmrec.data.splits.held_out_users import HeldOutUsers, HeldOutUsersConfig
from pmmrec.errors import RecipeError
from pmmrec.homes import CACHE
from pmmrec.models.build import ModelConfig
from pmmrec.objectives import ObjectiveConfig, objectives
from pmmrec.renamed import RenamedSettingWarning, renamed_recipe
from pmmrec.settings import Config, Place, Tree, overlay, parse_overrides, parse_yaml, read_extended, validate
from pmmrec.shipped import shipped_recipe
from pmmrec.train.callbacks import ValidationConfig
from pmmrec.train.config import TrainConfig
from pmmrec.train.processes import MachineConfig
from pmmrec.zoo.checkpoint import Checkpoint
from pmmrec.zoo.transfer import FULL, TransferPlan, model_after

if TYPE_CHECKING:
    ObjectiveField: TypeAlias = ObjectiveConfig
else:
    ObjectiveField = objectives.field

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
Line = Annotated[str, StringConstraints(pattern=r"^\S.*$", max_length=200)]
_R = TypeVar("_R", bound="RunRecipe")
_OF_KEPT_STATES = ("prefix_precision", "prefix_budget_gb")
# Places, names and logging change no result; the content of the sources is recorded separately.
UNTOLD = (
    *("name", "runs", "hub", "cache", "licence", "publish_as", "replace", "rank_test"),
    *("prefix_cache", "prefix_budget_gb", "train.log_every", "data.sources", "data.workers"),
    "validation.domain",
    *("machine.device", "machine.threads", "machine.trackers", "machine.project"),
)


def _names_a_module(name: str) -> str:
    if "." in name or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"{name!r} cannot name an objective, whose head torch would keep under it; choose another word"
        )
    return name


def _unquoted_switch(value: Any) -> Any:
    """Turn the truth values that YAML makes of `on` and `off` back into words."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


ObjectiveName = Annotated[Name, AfterValidator(_names_a_module)]


class PretrainData(DataConfig):
    """Data of a pretraining: the source domains."""

    sources: tuple[Place, ...] = Field(min_length=1, description="Domain folders, made by `pmmrec data import`.")
    holdout: HeldOutUsersConfig | None = Field(
        None,
        description="All users of the sources train with their whole sequences, but this sample of users, on whose "
        "last items epochs are judged; null: sources are split as data.split says. {users: 0.05} takes one in twenty.",
    )

    @model_validator(mode="after")
    def _holdout_alone_splits(self) -> Self:
        if self.holdout is not None and self.users is not None:
            raise ValueError("users: has no effect with holdout, which says who trains; leave one of them out")
        if self.holdout is not None and self.examples.type == "impressions":
            raise ValueError("holdout: impressions have a split of their own; leave one of them out")
        return self

    @property
    def has_test(self) -> bool:
        """Whether the sources keep test targets."""
        return self.holdout is None

    def split_of(self, domain: Domain) -> Split:
        """What of a source trains, and what is held out. Raises as `pmmrec.data.splits.split_of`."""
        return super().split_of(domain) if self.holdout is None else HeldOutUsers(self.holdout, domain)


class RunRecipe(Config):
    """What pretraining and fine-tuning share."""

    name: Name = Field(description="Name of the run; its folder is `runs/NAME`.")
    system: Name = Field("pmmrec", description="Which published system the model is; stands in the checkpoint.")
    seed: int = Field(1, ge=0, lt=2**31)
    objectives: dict[ObjectiveName, ObjectiveField | None] = Field(
        description="Name -> objective; null takes one away."
    )
    data: DataConfig = DataConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()
    machine: MachineConfig = MachineConfig()
    rank_test: bool = Field(
        True,
        description="Whether the test targets are ranked at the end and a pretraining published; tuning does neither.",
    )
    runs: Place = Field(Path("runs"), description="Folder in which run folders are made.")
    hub: Place = Field(Path("hub"), description="Folder hub: where checkpoints are published and looked up by name.")
    licence: Line = Field("other", description="Licence field of the card; the weights are yours to license.")
    cache: Path = Field(CACHE, description="Where tokens, pixels and states of frozen blocks are kept between runs.")
    prefix_cache: Annotated[Literal["auto", "on", "off"], BeforeValidator(_unquoted_switch)] = Field(
        "auto",
        description="Whether states of frozen blocks are computed once and kept; auto: where they can be.",
    )
    prefix_precision: Literal["float32", "bfloat16"] = Field("float32", description="In which they are kept.")
    prefix_budget_gb: float = Field(
        50.0, gt=0, description="Disk for them in the cache folder; those unused for longest make room."
    )

    @model_validator(mode="after")
    def _has_objective(self) -> Self:
        if not self.active_objectives:
            raise ValueError("objectives: at least one must be left")
        return self

    @model_validator(mode="after")
    def _kept_states_are_kept(self) -> Self:
        fields = type(self).model_fields
        idle = [name for name in _OF_KEPT_STATES if getattr(self, name) != fields[name].default]
        if self.prefix_cache == "off" and idle:
            raise ValueError(
                f"{', '.join(idle)}: without effect, prefix_cache=off keeps no states; leave out, or say auto"
            )
        return self

    @model_validator(mode="after")
    def _loss_ranks_nothing(self) -> Self:
        if self.validation.judge == "loss" and self.rank_test:
            raise ValueError(
                "validation.judge: loss is for a stage that ranks nothing; say rank_test: false too, or judge: ranking"
            )
        return self

    @property
    def active_objectives(self) -> dict[str, ObjectiveConfig]:
        return {name: config for name, config in self.objectives.items() if isinstance(config, ObjectiveConfig)}

    @property
    def folder(self) -> Path:
        return self.runs / self.name

    @property
    def prefix(self) -> PrefixConfig:
        return PrefixConfig(use=self.prefix_cache, precision=self.prefix_precision, budget_gb=self.prefix_budget_gb)

    def told(self, *, only_chosen: bool = False) -> Tree:
        """The settings that results depend on; `only_chosen`: those of them that are not at their default."""
        tree: Tree = self.model_dump(mode="json", exclude_defaults=only_chosen)
        for path in UNTOLD:
            *above, last = path.split(".")
            inner = tree
            for key in above:
                inner = inner.get(key, {})
            inner.pop(last, None)
        return tree

    def to_yaml(self) -> str:
        """The recipe with every default written out; reading it gives the same recipe."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    def reread(self, text: str) -> str:
        """The text of an earlier version, as this version would write it; unchanged if it cannot be read."""
        try:
            return self._of_earlier(parse_yaml(text, "recipe")).to_yaml()
        except RecipeError:
            return text

    def retold(self, told: Tree) -> Tree:
        """What `told` of an earlier version gave, as this version gives it; unchanged if it cannot be read."""
        untold = _without(self.model_dump(mode="json"), self.told())
        try:
            return self._of_earlier(overlay(told, untold)).told()
        except RecipeError:
            return told

    def _of_earlier(self, tree: Tree) -> Self:
        """A recipe that an earlier version wrote, read without a notice."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RenamedSettingWarning)
            return validate(type(self), renamed_recipe(tree), "recipe")

    def to_public_yaml(self) -> str:
        """The recipe as a checkpoint holds it: without places of this machine; of sources only the last name."""
        tree = self.model_dump(mode="json", exclude={"runs", "hub", "cache"})
        if "sources" in tree["data"]:
            tree["data"]["sources"] = [Path(source).absolute().name for source in tree["data"]["sources"]]
        if tree["validation"]["domain"] is not None:
            tree["validation"]["domain"] = Path(tree["validation"]["domain"]).absolute().name
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


class PretrainRecipe(RunRecipe):
    """Pretrain one model on several domains, then publish its parts."""

    model: ModelConfig
    data: PretrainData
    publish_as: Name | None = Field(None, description="Name in the hub; null: the name of the run.")
    replace: bool = Field(False, description="Whether a checkpoint of that name gives way.")

    @property
    def published_name(self) -> str:
        return self.publish_as or self.name


class FinetuneRecipe(RunRecipe):
    """Train on one domain, from a checkpoint or from scratch."""

    model: ModelConfig | None = Field(
        None, description="None: the checkpoint's, less what `transfer` leaves behind. Needed with `--from none`."
    )
    transfer: TransferPlan | None = Field(None, description="None: every part of the model from the checkpoint.")
    adapters: AdapterPlan | None = Field(None, description="Adapters that alone learn, and alone are saved.")

    @model_validator(mode="after")
    def _its_own_domain_judges(self) -> Self:
        if self.validation.domain is not None:
            raise ValueError("validation.domain: a fine-tuning is judged by the domain that it trains on; leave it out")
        return self

    @model_validator(mode="after")
    def _one_says_what_learns(self) -> Self:
        if self.adapters is not None and self.transfer is not None and self.transfer.train is not None:
            raise ValueError("transfer.train: adapters say what learns; name further parts in adapters.train")
        return self

    def model_from(self, checkpoint: Checkpoint | None) -> ModelConfig:
        """The model to train: the recipe's, or else the checkpoint's. RecipeError if neither has one."""
        if checkpoint is None and self.adapters is not None:
            raise RecipeError(
                f"{self.name}: adapters: stand on a checkpoint, and `--from none` leaves none; train a model of the "
                "same parts without adapters first, and name its checkpoint"
            )
        if checkpoint is None and self.transfer is not None:
            raise RecipeError(
                f"{self.name}: transfer: has no effect with `--from none`; leave it out, or name a checkpoint"
            )
        if checkpoint is not None and self.transfer is not None and not self.transfer.loads(checkpoint.part_groups):
            raise RecipeError(
                f"{self.name}: transfer: takes over no part of {checkpoint.folder}, which holds "
                f"{', '.join(checkpoint.parts)}; name one in load, or train from scratch with `--from none`"
            )
        if self.model is not None:
            return self.model
        if checkpoint is None:
            raise RecipeError(
                f"{self.name}: model: missing, and `--from none` leaves nothing to take it from; "
                "use a recipe with a model (finetune/scratch), or --from CHECKPOINT"
            )
        return checkpoint.model_config if self.transfer is None else model_after(self.transfer, checkpoint)

    def backbones_from(self, checkpoint: Checkpoint | None) -> dict[str, Backbone]:
        """The backbones of parts that come from the checkpoint; they need not be found or started."""
        if checkpoint is None:
            return {}
        loaded = (self.transfer or FULL).loads(checkpoint.part_groups)
        given = checkpoint.backbones(loaded)
        for part in given:
            self._refuse_other_backbone(part, checkpoint)
        return given

    def _refuse_other_backbone(self, part: str, checkpoint: Checkpoint) -> None:
        """RecipeError if the recipe's model describes another backbone than the checkpoint, whose backbone is used."""
        ours = self.model.item_encoder.encoders.get(part) if self.model is not None else None
        if ours is None:
            return
        theirs = checkpoint.model_config.item_encoder.encoders[part]
        for setting in ("type", "weights", "architecture", "vocab_size"):
            wanted, found = getattr(ours, setting, None), getattr(theirs, setting, None)
            if wanted != found:
                here, there = _told_apart(wanted, found)
                raise RecipeError(
                    f"model: {part}: {setting} is {here}, but the part comes from {checkpoint.folder}, where it is "
                    f"{there}; leave model out of the recipe, or start the part fresh with transfer"
                )


def _without(tree: Tree, less: Tree) -> Tree:
    """The settings of `tree` that `less` does not have."""
    inner = {key: _without(value, less[key]) for key, value in tree.items() if key in less and isinstance(value, dict)}
    return {key: value for key, value in tree.items() if key not in less} | {k: v for k, v in inner.items() if v}


def _told_apart(ours: Any, theirs: Any) -> tuple[str, str]:
    """Both values as text; of two mappings, only the keys that differ."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
        ours, theirs = ({key: one.get(key) for key in keys} for one in (ours, theirs))
    return repr(ours), repr(theirs)


def read_recipe(recipe_class: type[_R], path: Path, overrides: Iterable[str] = ()) -> _R:
    """A recipe from a file, its `extends:` and overrides. RecipeError that lists every problem."""
    tree = recipe_tree(path, overrides)
    if recipe_class_for(tree) is not recipe_class:
        verb, found = ("finetune", "names") if recipe_class is FinetuneRecipe else ("pretrain", "does not name")
        raise RecipeError(
            f"{path}: {found} data.sources, so it is not a recipe for `pmmrec {verb}`; "
            "a pretraining has sources, a fine-tuning takes its domain from --on"
        )
    return validate(recipe_class, tree, str(path))


def recipe_tree(path: Path, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """The plain mapping that a recipe is read from."""
    tree = read_extended(path, shipped_recipe)
    return renamed_recipe(overlay(tree, parse_overrides(overrides, tree)))


def recipe_class_for(tree: Mapping[str, Any]) -> type[RunRecipe]:
    """A recipe with sources is a pretraining, one without a fine-tuning."""
    data = tree.get("data")
    is_pretraining = isinstance(data, Mapping) and "sources" in data
    return PretrainRecipe if is_pretraining else FinetuneRecipe
