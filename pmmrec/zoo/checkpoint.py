"""Keep a trained recommender on disk as parts that can travel alone, and open it again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from pmmrec.encoders import Backbone, Encoder
from pmmrec.encoders.weights import is_finite
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.models import Catalogue
from pmmrec.models.build import ModelConfig, build
from pmmrec.models.ids import ItemTable
from pmmrec.models.recommender import Recommender
from pmmrec.settings import validate
from pmmrec.zoo import files
from pmmrec.zoo.about import FORMAT, OBJECTIVES, about_heads, about_parts
from pmmrec.zoo.index import Index, PartEntry
from pmmrec.zoo.origin import Origin, origin_of
from pmmrec.zoo.tensors import SUFFIX, damages, not_finite, promises_of

PART_TENSORS, PART_SETTINGS = "part.safetensors", "part.json"
RECIPE_NAME, METRICS_NAME, CARD_NAME = "recipe.yaml", "metrics.json", "README.md"
BACKBONE = "backbone."


@dataclass(frozen=True)
class TensorOwner:
    """Who owns the tensors of a state dict that start with `prefix`."""

    prefix: str
    module: nn.Module


def save_checkpoint(
    folder: Path,
    *,
    system: str,
    model_config: ModelConfig,
    recommender: Recommender,
    objectives: Mapping[str, nn.Module],
    state: Mapping[str, Tensor],
    recipe: str,
    metrics: Mapping[str, Any],
    card: str,
    provenance: Mapping[str, Any],
    replace: bool = False,
) -> None:
    """Write `folder` whole or not at all.

    `state` is the whole state dict of the run, `recommender.<path>` and `objectives.<name>.<path>`; tensors come from
    there alone, since a sharded module holds only its share. Raises RecipeError where `folder` exists (with `replace`
    the old checkpoint gives way when the new one is whole), CheckpointError where tensors are missing, belong to no
    part or share memory, MachineError where the disk refuses.
    """
    owners = {
        name: TensorOwner(f"recommender.{path}.", recommender.parts[name])
        for name, path in part_paths(recommender).items()
    }
    heads = {name: head for name, head in objectives.items() if head.state_dict()}
    owners |= {f"{OBJECTIVES}/{name}": TensorOwner(f"{OBJECTIVES}.{name}.", head) for name, head in heads.items()}
    states = owned_tensors(state, owners)
    about = about_parts(model_config, recommender.parts) | about_heads(model_config, heads)
    with files.writing(folder, replace=replace) as place:
        entries = {name: write_part(place, name, owners[name].module, states[name], about[name]) for name in owners}
        index = Index(
            format=FORMAT,
            system=system,
            width=model_config.width,
            model=model_config.model_dump(mode="json"),
            parts={name: entries[name] for name in recommender.parts},
            objectives={name: entries[f"{OBJECTIVES}/{name}"] for name in heads},
            files=write_papers(place, recipe, metrics, card),
            provenance=dict(provenance),
        )
        files.write_json(place / files.INDEX_NAME, index.written())


def write_papers(place: Path, recipe: str, metrics: Mapping[str, Any], card: str) -> dict[str, str]:
    """Write what stands beside the parts; SHA-256 of each file by name."""
    (place / RECIPE_NAME).write_text(recipe, encoding="utf-8")
    (place / CARD_NAME).write_text(card, encoding="utf-8")
    files.write_json(place / METRICS_NAME, metrics)
    return {name: files.sha256_of(place / name) for name in (RECIPE_NAME, METRICS_NAME, CARD_NAME)}


def part_paths(recommender: Recommender) -> dict[str, str]:
    """Where each part stands in its recommender, by name. Raises CheckpointError for tensors outside every part."""
    path_of = {id(module): path for path, module in recommender.named_modules()}
    paths = {name: path_of[id(part)] for name, part in recommender.parts.items()}
    owned = tuple(f"{path}." for path in paths.values())
    stray = [name for name in recommender.state_dict() if not name.startswith(owned)]
    if stray:
        raise CheckpointError(
            f"tensors of the model belong to no part: {files.listed(stray)}; name their part in `parts`"
        )
    return paths


def owned_tensors(state: Mapping[str, Tensor], owners: Mapping[str, TensorOwner]) -> dict[str, dict[str, Tensor]]:
    """The tensors of each owner by the names that its module gives them; each tensor of the state has one owner."""
    split: dict[str, dict[str, Tensor]] = {}
    owned: set[str] = set()
    for name, owner in owners.items():
        keys = {key: owner.prefix + key for key in owner.module.state_dict()}
        if missing := set(keys.values()) - set(state):
            raise CheckpointError(f"{name}: the state to save lacks {files.listed(missing)}")
        split[name] = {key: files.standalone(state[full]) for key, full in keys.items()}
        if shared := files.sharing({key: state[full] for key, full in keys.items()}):
            raise CheckpointError(f"{name}: tensors share memory: {files.listed(shared)}; give each its own copy")
        owned |= set(keys.values())
    if stray := set(state) - owned:
        raise CheckpointError(f"the state to save holds tensors of no part and no objective: {files.listed(stray)}")
    return split


def write_part(
    place: Path, folder_name: str, part: nn.Module, tensors: Mapping[str, Tensor], about: Mapping[str, Any]
) -> PartEntry:
    """Write the tensors of a part below `place`, a backbone as its library reads it."""
    folder = place / folder_name
    folder.mkdir(parents=True)
    if isinstance(part, Encoder):
        inner = {key.removeprefix(BACKBONE): tensor for key, tensor in tensors.items() if key.startswith(BACKBONE)}
        part.save_backbone(folder, inner)
        tensors = {key: tensor for key, tensor in tensors.items() if not key.startswith(BACKBONE)}
    files.write_tensors(folder / PART_TENSORS, tensors)
    files.write_json(folder / PART_SETTINGS, {"format": FORMAT, **about})
    return describe(place, folder_name, about)


def describe(place: Path, folder_name: str, about: Mapping[str, Any]) -> PartEntry:
    """What the index says of a part or of adapters whose files stand below `place`."""
    told = promises_of(place / folder_name)
    return PartEntry(
        family=about["family"],
        type=about["type"],
        folder=folder_name,
        files={name: promise.sha256 for name, promise in told.items()},
        tensors={name: dict(promise.tensors) for name, promise in told.items() if promise.tensors is not None},
    )


class Checkpoint:
    """A checkpoint on disk whose index is sound; tensors are read, and their files verified, when asked for."""

    def __init__(self, folder: Path, index: Index, model_config: ModelConfig) -> None:
        self.folder, self.index, self.model_config = folder, index, model_config
        self._sound: set[str] = set()

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read and check the index; of adapters, an `AdapterCheckpoint`.

        Raises CheckpointError where it is absent, of another format or points outside.
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
        if index.base is not None:
            from pmmrec.zoo.adapters import AdapterCheckpoint

            return AdapterCheckpoint(here, index, model_config)
        return cls(here, index, model_config)

    @property
    def parts(self) -> Mapping[str, PartEntry]:
        return self.index.parts

    @property
    def held(self) -> Mapping[str, PartEntry]:
        """What stands in its own folder, by folder; adapters stand on a part that is elsewhere."""
        return {**self.index.parts, **{entry.folder: entry for entry in self.index.adapted.values()}}

    @property
    def objectives(self) -> Mapping[str, PartEntry]:
        """Objectives whose heads were saved, by name."""
        return self.index.objectives

    @property
    def system(self) -> str:
        return self.index.system

    @property
    def provenance(self) -> Mapping[str, Any]:
        return self.index.provenance

    @cached_property
    def origin(self) -> Origin:
        """The place that it came from and the commit that stood there; of a folder, itself and its index's SHA-256."""
        return origin_of(self.folder)

    @property
    def learned_from(self) -> list[str]:
        """Names of the domains that it learned from; empty where the index does not say."""
        domains = self.provenance.get("domains")
        return [str(name) for name in domains] if isinstance(domains, Mapping) else []

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Figures that were stored with the checkpoint."""
        metrics: Mapping[str, Any] = files.read_json(self.folder / METRICS_NAME)
        return metrics

    def backbones(self, parts: Collection[str] | None = None) -> dict[str, Backbone]:
        """What `build` needs for each encoder, or those among `parts`: configuration and tokenizer, verified."""
        names = [name for name in self.model_config.item_encoder.encoders if parts is None or name in parts]
        return {name: Backbone(self.sound_folder(self._entry(name)), is_pretrained=False) for name in names}

    def verify(self) -> list[str]:
        """What is wrong with the files, in words; empty when each is there and as it was written, and none more."""
        expected = self.index.promises
        extra = set(files.files_below(self.folder)) - {*expected, files.INDEX_NAME}
        problems = damages(self.folder, expected)
        problems += [f"{name} is not in {files.INDEX_NAME}" for name in sorted(extra)]
        return problems or self._mislabelled()

    def _mislabelled(self) -> list[str]:
        """Parts of which the index says something else than what they hold, or than their own part.json."""
        problems = []
        for entry in (*self.index.parts.values(), *self.index.objectives.values(), *self.index.adapted.values()):
            about = files.read_json(self.folder / entry.folder / PART_SETTINGS)
            found = (about.get("family"), about.get("type")) if isinstance(about, dict) else about
            if found != (entry.family, entry.type):
                said = f"{entry.family} {entry.type!r} in {files.INDEX_NAME}"
                problems.append(f"{entry.folder}/{PART_SETTINGS} says {found}, which is {said}")
        return problems

    def broken_numbers(self) -> list[str]:
        """Tensors of whole files that hold NaN or infinity, in words; a training that diverged leaves such."""
        tensors = [path for path in self.index.all_files if path.endswith(SUFFIX)]
        broken = {path: not_finite(self.folder / path) for path in tensors}
        return [f"{path} holds NaN or infinity in {files.listed(names)}" for path, names in broken.items() if names]

    def part_state(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a part by the names that its module gives them, as one that travels alone.

        Raises CheckpointError where a file of the part is missing, more, changed, or no safetensors file.
        """
        return read_part(self.sound_folder(self._entry(name)), module)

    def base_state(self, name: str, module: nn.Module) -> dict[str, Tensor]:
        """The tensors of a part that `complete` goes on from."""
        return self.part_state(name, module)

    def complete(self, recommender: Recommender) -> None:
        """Put what is more than tensors of its parts into a recommender that holds those of `base_state`."""

    def objective_state(self, name: str) -> dict[str, Tensor]:
        """The tensors of an objective's head. Raises CheckpointError as `part_state` does."""
        return files.read_tensors(self.sound_folder(self.objectives[name]) / PART_TENSORS)

    def sizes(self, entry: PartEntry) -> list[int]:
        """How many numbers each tensor of a part or head holds, from the headers of its files alone.

        Of a part that was not pulled, as the index says.
        """
        folder = self.folder_of(entry)
        if not _is_here(folder, entry):
            if entry.sizes is not None:
                return entry.sizes
            folder = self.sound_folder(entry)
        return files.sizes_in(folder, entry.files)

    def folder_of(self, entry: PartEntry) -> Path:
        """Where the files of a part or head stand."""
        return self.folder / entry.folder

    def _entry(self, name: str) -> PartEntry:
        if name not in self.parts:
            raise CheckpointError(f"{self.folder}: holds no part {name!r}; it holds {files.listed(self.parts)}")
        return self.parts[name]

    def sound_folder(self, entry: PartEntry) -> Path:
        """The folder of a part or head after its files were verified, once. Raises CheckpointError."""
        folder = self.folder / entry.folder
        if entry.folder not in self._sound:
            if not folder.resolve().is_relative_to(self.folder.resolve()):
                raise CheckpointError(f"{folder}: a link out of the checkpoint; copy the folder itself there")
            if not _is_here(folder, entry):
                self._fetch(entry)
            extra = set(files.files_below(folder)) - set(entry.files)
            problems = damages(folder, entry.promises)
            problems += [f"{name} is not in {files.INDEX_NAME}" for name in sorted(extra)]
            if problems:
                raise CheckpointError(f"{folder}: {'; '.join(problems)}; take a whole copy of the checkpoint")
            files.refuse_code(folder, entry.files)
            self._sound.add(entry.folder)
        return folder

    def _fetch(self, entry: PartEntry) -> None:
        """Fetch a part that was left out when the rest was pulled from another machine."""
        if self.origin.is_remote:
            from pmmrec.zoo.hub import fetch_entry

            fetch_entry(self, entry)
        elif not (self.folder / entry.folder).exists():
            raise CheckpointError(
                f"{self.folder}: {entry.folder} is listed and not here: this copy holds some of the parts; take a "
                "copy that holds it too"
            )


def _is_here(folder: Path, entry: PartEntry) -> bool:
    return all((folder / name).is_file() for name in entry.files)


def load_recommender(checkpoint: Checkpoint, catalogues: Sequence[Catalogue] = ()) -> Recommender:
    """The recommender as it was saved, in eval mode; raises CheckpointError unless every tensor is accounted for."""
    try:
        recommender = build(checkpoint.model_config, checkpoint.backbones(), catalogues)
    except RecipeError as error:
        raise CheckpointError(f"{checkpoint.folder}: its model cannot be built: {error}") from error
    part_paths(recommender)
    if set(recommender.parts) != set(checkpoint.parts):
        raise CheckpointError(
            f"{checkpoint.folder}: holds the parts {files.listed(checkpoint.parts)}, "
            f"its model has {files.listed(recommender.parts)}"
        )
    states = {name: checkpoint.base_state(name, part) for name, part in recommender.parts.items()}
    problems = [line for name, part in recommender.parts.items() for line in misfits(name, states[name], part)]
    if problems:
        raise CheckpointError("\n".join([f"{checkpoint.folder}: does not fit its own model", *problems]))
    for name, part in recommender.parts.items():
        fill(part, states[name])
    checkpoint.complete(recommender)
    return recommender.eval()


def misfits(name: str, state: Mapping[str, Tensor], module: nn.Module) -> list[str]:
    """Why `state` cannot become the tensors of `module`, a line for each reason; empty when it can."""
    own = module.state_dict()
    missing, extra = set(own) - set(state), set(state) - set(own)
    reshaped = [
        f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
        for key in set(own) & set(state)
        if state[key].shape != own[key].shape
    ]
    retyped = [
        f"{key} {state[key].dtype} for {own[key].dtype}"
        for key in set(own) & set(state)
        if state[key].is_floating_point() != own[key].is_floating_point()
    ]
    broken = [key for key in set(own) & set(state) if not is_finite(state[key])]
    found = {"missing in": missing, "unknown to the model in": extra, "of another shape in": reshaped}
    found |= {"of another kind in": retyped, "NaN or infinite in": broken}
    return [f"  {name}: {what} the checkpoint: {files.listed(names)}" for what, names in found.items() if names]


def fill(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors that fit into a module, in place; a module on the meta device, of a dry run, holds none."""
    if any(tensor.is_meta for tensor in module.state_dict().values()):
        return
    module.load_state_dict(dict(state), strict=True)


def read_part(folder: Path, module: nn.Module) -> dict[str, Tensor]:
    """The tensors that `write_part` wrote, by the names that `module` gives them."""
    state = files.read_tensors(folder / PART_TENSORS)
    if isinstance(module, ItemTable) and "catalogue_bytes" in state:
        module.check_catalogues(state["catalogue_bytes"])
        state["catalogue_bytes"] = module.get_buffer("catalogue_bytes")  # the same items; their domain may be renamed
    if not isinstance(module, Encoder):
        return state
    on_disk = [
        name for path in folder.glob("*.safetensors") if path.name != PART_TENSORS for name in files.shapes_in(path)
    ]
    try:
        backbone = module.read_backbone(folder)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: the backbone cannot be read: {error}") from error
    if len(on_disk) != len(backbone):  # libraries pass over tensors that they do not know
        unread = files.listed(set(on_disk) - set(backbone))
        raise CheckpointError(f"{folder}: the backbone has no place for {unread or 'some tensors'} of its files")
    return {**state, **{f"{BACKBONE}{key}": tensor for key, tensor in backbone.items()}}
