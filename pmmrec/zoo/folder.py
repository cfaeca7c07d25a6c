"""A checkpoint folder on this machine: its index, its files, and whether they are intact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from pmmrec.context import InteractionGraph
from pmmrec.data.domain import Domain
from pmmrec.data.splits import Split, split_of, splits
from pmmrec.data.splits.held_out_users import HeldOutUsers, HeldOutUsersConfig
from pmmrec.data.splits.leave_one_out import LeaveOneOutConfig
from pmmrec.data.user_sample import UserSampleConfig
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.family import PartGroup
from pmmrec.models.build import ModelConfig
from pmmrec.settings import PartConfig, read_yaml, validate
from pmmrec.zoo import files
from pmmrec.zoo.about import FORMAT, group_of
from pmmrec.zoo.index import Index, PartEntry
from pmmrec.zoo.origin import Origin, origin_of
from pmmrec.zoo.tensors import SUFFIX, damages, not_finite

PART_TENSORS, PART_SETTINGS = "part.safetensors", "part.json"
ADAPTER_TENSORS = "adapter_model.safetensors"  # the name that peft expects
RECIPE_NAME, METRICS_NAME, CARD_NAME = "recipe.yaml", "metrics.json", "README.md"


class CheckpointFolder:
    """A folder with a valid index. Its files may be incomplete or damaged; `verify` tells."""

    def __init__(self, folder: Path, index: Index, model_config: ModelConfig) -> None:
        self.folder, self.index, self.model_config = folder, index, model_config

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Read and check the index. Raises what `read_index` raises."""
        return cls(*read_index(folder))

    @property
    def system(self) -> str:
        """Name of the recommender system."""
        return self.index.system

    def was_trained_on(self, name: str, fingerprint: str) -> bool:
        """Whether it says that it was trained on the domain with this fingerprint, or on one of this name."""
        domains = self.provenance.get("domains")
        about = domains if isinstance(domains, Mapping) else {}
        fingerprints = [one.get("fingerprint") for one in about.values() if isinstance(one, Mapping)]
        return name in about or fingerprint in fingerprints

    @property
    def before(self) -> Mapping[str, Mapping[str, Any]]:
        """Domains that checkpoints before it learned from, by name.

        Of each the fingerprint, and what split it where that was not leave-one-out: `holdout` or `split`.
        """
        return _by_domain(self.provenance.get("before"))

    @property
    def inherited(self) -> dict[str, Mapping[str, Any]]:
        """`before` of a checkpoint that starts from this one."""
        about, holdout = _by_domain(self.provenance.get("domains")), self._data_settings.get("holdout")
        more = {} if holdout is None else {"holdout": holdout}
        if holdout is None and self.split != LeaveOneOutConfig():
            more = {"split": self.split.model_dump(mode="json")}
        own = {name: {"fingerprint": one.get("fingerprint"), **more} for name, one in about.items()}
        return {**self.before, **own}

    @property
    def provenance(self) -> Mapping[str, Any]:
        """What the run that made the checkpoint recorded about itself."""
        return self.index.provenance

    @property
    def learned_from(self) -> list[str]:
        """Names of the domains it was trained on; empty where the index does not say."""
        domains = self.provenance.get("domains")
        return [str(name) for name in domains] if isinstance(domains, Mapping) else []

    @property
    def metrics(self) -> Mapping[str, Any]:
        """The figures stored with the checkpoint."""
        metrics: Mapping[str, Any] = files.read_json(self.folder / METRICS_NAME)
        return metrics

    @cached_property
    def split(self) -> PartConfig:
        """The split of the recipe that made the checkpoint; leave-one-out where the recipe names none.

        Raises CheckpointError for a split that is not known.
        """
        tree = self._data_settings.get("split")
        try:
            return LeaveOneOutConfig() if tree is None else splits.config(dict(tree))
        except (RecipeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.folder / RECIPE_NAME}: data.split: {error}") from error

    def split_of(self, domain: Domain, instead: PartConfig | None = None) -> Split:
        """How figures of this checkpoint split a domain: by `split`, and with the users it learned from there.

        A domain that a pretraining with `data.holdout`, this one or one before it, has learned from has no test target.
        `instead`: another split; RecipeError where the checkpoint learned from the domain, for it may know what that
        one would hold out. Raises CheckpointError for settings that cannot be read, and as `data.splits.split_of`.
        """
        path, holdout = self.folder / RECIPE_NAME, self._holdout_of(domain)
        learned = self._learned_split(domain)
        if holdout is None and learned is None:
            return split_of(instead or self.split, domain)
        if instead is not None and instead != (learned or self.split):
            raise RecipeError(
                f"--split: {self.folder} learned from {domain.name} under another split, and so from targets of this "
                "one; leave it out, or train under this split"
            )
        users = None
        if self.was_trained_on(domain.name, domain.fingerprint):
            users = self._data_settings.get("users")
        try:
            if holdout is not None:
                return HeldOutUsers(validate(HeldOutUsersConfig, holdout, "data.holdout"), domain)
            sample = None if users is None else validate(UserSampleConfig, users, "data.users")
        except RecipeError as error:
            raise CheckpointError(f"{path}: {error}") from error
        return split_of(learned or self.split, domain, sample)

    def refuse_learned_targets(self, domain: Domain, split: PartConfig) -> None:
        """RecipeError for a domain from which it, or a checkpoint before it, learned what `split` may hold out.

        These are domains of a pretraining with `data.holdout`, and those that were learned from under another split.
        """
        if self._holdout_of(domain) is not None:
            raise RecipeError(
                f"--on {domain.folder}: {self.folder} learned from all of its users but a sample (data.holdout), and "
                "so from targets that this run would rank; name another domain, or a checkpoint without data.holdout"
            )

        learned = self._learned_split(domain)
        if learned is not None and learned != split:
            raise RecipeError(
                f"--on {domain.folder}: {self.folder} learned from it under data.split: {_told(learned)}, and so maybe "
                "from targets that this run would rank; choose that split, or name another domain"
            )

    def _learned_split(self, domain: Domain) -> PartConfig | None:
        """The split under which it, or a checkpoint before it, learned from a domain; None where none did."""
        if self.was_trained_on(domain.name, domain.fingerprint):
            return self.split
        for one in self._before(domain):
            tree = one.get("split")
            return LeaveOneOutConfig() if tree is None else splits.config(dict(tree))
        return None

    def _before(self, domain: Domain) -> Iterator[Mapping[str, Any]]:
        """What is known of a domain that checkpoints before this one learned from."""
        for name, one in self.before.items():
            if domain.name == name or domain.fingerprint == one.get("fingerprint"):
                yield one

    def _holdout_of(self, domain: Domain) -> Any:
        """The settings of `data.holdout` with which it, or a checkpoint before it, learned from a domain; or None."""
        if self.was_trained_on(domain.name, domain.fingerprint):
            return self._data_settings.get("holdout")
        return next((one["holdout"] for one in self._before(domain) if "holdout" in one), None)

    def graph_of(self, domain: Domain) -> InteractionGraph:
        """The training interactions of `split_of`; neither is read before a model asks for them."""

        def read() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            return self.split_of(domain).graph.read()

        return InteractionGraph(domain.num_users, domain.num_items, read, domain.item_feature)

    @cached_property
    def _data_settings(self) -> Mapping[str, Any]:
        """What the recipe says under `data`; empty where there is no recipe. CheckpointError for a broken one."""
        path = self.folder / RECIPE_NAME
        try:
            data = read_yaml(path).get("data") if path.is_file() and path.stat().st_size else None
        except RecipeError as error:
            raise CheckpointError(f"{path}: data.split: {error}") from error
        return data if isinstance(data, Mapping) else {}

    @property
    def parts(self) -> Mapping[str, PartEntry]:
        """The parts of the model, by name."""
        return self.index.parts

    @property
    def part_groups(self) -> dict[str, PartGroup]:
        """What each part works on, by name. CheckpointError for a part of an unknown family."""
        return {name: group_of(entry.family) for name, entry in self.parts.items()}

    @property
    def objectives(self) -> Mapping[str, PartEntry]:
        """The objectives whose heads were saved, by name."""
        return self.index.objectives

    @property
    def held(self) -> Mapping[str, PartEntry]:
        """The parts and adapters stored in this folder, by subfolder."""
        return {**self.index.parts, **{entry.folder: entry for entry in self.index.adapted.values()}}

    @cached_property
    def origin(self) -> Origin:
        """Where a cached copy was fetched from, and its commit; for any other folder, the folder and its index hash."""
        return origin_of(self.folder)

    def verify(self) -> list[str]:
        """Problems with the files, one per line; empty if all listed files are intact and there are no others."""
        expected = self.index.promises
        extra = set(files.files_below(self.folder)) - {*expected, files.INDEX_NAME}
        problems = damages(self.folder, expected)
        problems += [f"{name} is not in {files.INDEX_NAME}" for name in sorted(extra)]
        return problems or self._mislabelled()

    def _mislabelled(self) -> list[str]:
        """Parts whose own part.json contradicts the index."""
        problems = []
        for entry in (*self.index.parts.values(), *self.index.objectives.values(), *self.index.adapted.values()):
            about = files.read_json(self.folder / entry.folder / PART_SETTINGS)
            found = (about.get("family"), about.get("type")) if isinstance(about, dict) else about
            if found != (entry.family, entry.type):
                said = f"{entry.family} {entry.type!r} in {files.INDEX_NAME}"
                problems.append(f"{entry.folder}/{PART_SETTINGS} says {found}, which is {said}")
        return problems

    def broken_numbers(self) -> list[str]:
        """Tensors that hold NaN or infinity, one line per file; a diverged training leaves such."""
        tensors = [path for path in self.index.all_files if path.endswith(SUFFIX)]
        broken = {path: not_finite(self.folder / path) for path in tensors}
        return [f"{path} holds NaN or infinity in {files.listed(names)}" for path, names in broken.items() if names]


def read_index(folder: Path) -> tuple[Path, Index, ModelConfig]:
    """Read and check the index of a checkpoint: the folder it is in now, the index, the settings of its model.

    Raises CheckpointError where the index is missing, has another format or lists paths outside the folder.
    """
    here = files.current(folder)
    path = here / files.INDEX_NAME
    if not path.is_file():
        raise CheckpointError(f"{folder}: not a checkpoint: it holds no {files.INDEX_NAME}")
    tree = files.read_json(path)
    if not isinstance(tree, dict) or "format" not in tree:
        raise CheckpointError(f"{path}: not the index of a pmmrec checkpoint: it states no format")
    if tree["format"] != FORMAT:
        raise CheckpointError(f"{path}: format {tree['format']!r} is not known; this pmmrec reads format {FORMAT}")
    try:
        index = validate(Index, tree, str(path))
        model_config = validate(ModelConfig, index.model, f"{path}: model")
    except RecipeError as error:
        raise CheckpointError(str(error)) from error
    if index.width != model_config.width:
        raise CheckpointError(f"{path}: width {index.width} is not the width of its model, {model_config.width}")
    return here, index, model_config


def _told(split: PartConfig) -> str:
    """The settings of a split that are not at their default."""
    return json.dumps({"type": split.type, **split.model_dump(mode="json", exclude_defaults=True)})


def _by_domain(told: Any) -> dict[str, Mapping[str, Any]]:
    """What an index says of domains, by name; what cannot be read is left out."""
    entries = told.items() if isinstance(told, Mapping) else ()
    return {str(name): one for name, one in entries if isinstance(one, Mapping)}
