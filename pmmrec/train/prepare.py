"""Prepare a run: open its domains, backbones and item reader, and make its batches."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pmmrec.context import Backbone, Catalogue, InteractionGraph
from pmmrec.contracts import Batch, ItemInputs, Prefix, to_device
from pmmrec.data.batches import BatchBuilder, DataConfig, Division
from pmmrec.data.contents import check_codes, check_features, having
from pmmrec.data.domain import Domain
from pmmrec.data.examples import Examples
from pmmrec.data.items import ItemReader
from pmmrec.data.loader import BatchLoader
from pmmrec.data.prefix import PrefixConfig
from pmmrec.data.prefix_room import NoRoomError
from pmmrec.data.splits import Split
from pmmrec.encoders import Encoder, encoder_class
from pmmrec.errors import RecipeError
from pmmrec.homes import expanded
from pmmrec.modality import Modality
from pmmrec.models.build import ModelConfig
from pmmrec.models.recommender import Recommender
from pmmrec.progress import Progress, bars
from pmmrec.train.accumulate import AccumulateConfig, refuse_idle_parts
from pmmrec.train.division import gathers, shared_out
from pmmrec.train.log import RunLog
from pmmrec.train.pair_checks import check_pairs
from pmmrec.train.processes import Processes
from pmmrec.train.run import Run
from pmmrec.train.task import TrainingTask
from pmmrec.zoo import files
from pmmrec.zoo.hub import find_weights, weights_origin

TEXTS_AT_ONCE = 10_000
MAX_TRAIN_TEXTS = 1_000_000
BACKBONES_FOLDER = "backbones"


@dataclass(frozen=True)
class Sources:
    """The domains of a run, opened and split, in the order of the recipe."""

    domains: tuple[Domain, ...]
    splits: tuple[Split, ...]

    @classmethod
    def open(cls, folders: Sequence[Path], data: DataConfig | None = None) -> Sources:
        """Open the domains and split them as the recipe says; None: leave-one-out.

        Raises RecipeError when two have one name: names tell users and items apart.
        """
        domains = tuple(Domain.open(folder) for folder in folders)
        names = [domain.name for domain in domains]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise RecipeError(f"data.sources: two domains are called {twice[0]!r}; import one under another --name")
        return cls(domains, tuple(map((data or DataConfig()).split_of, domains)))

    @property
    def told(self) -> list[str]:
        """A sentence on each domain of which not all users train."""
        return [split.about_users for split in self.splits if split.about_users is not None]

    @property
    def num_trained_users(self) -> int:
        """How many users of all domains have something to learn from."""
        return sum(int(np.count_nonzero(lengths)) for split in self.splits for _, lengths in split.train_lengths())

    @property
    def names(self) -> list[str]:
        return [domain.name for domain in self.domains]

    @property
    def num_items(self) -> int:
        """Of all domains together."""
        return sum(domain.num_items for domain in self.domains)

    @property
    def catalogues(self) -> list[Catalogue]:
        return [domain.catalogue for domain in self.domains]

    @property
    def graphs(self) -> list[InteractionGraph]:
        return [split.graph for split in self.splits]

    def train_texts(self, fields: Sequence[str] = ("text",)) -> Iterator[str]:
        """Texts of the items that occur in training, to train a tokenizer on.

        A domain with many more than `MAX_TRAIN_TEXTS` gives every second one, or every third, and so on.
        """
        for domain, split in zip(self.domains, self.splits, strict=True):
            rows = np.flatnonzero(split.train_counts)
            rows = rows[:: max(1, len(rows) // MAX_TRAIN_TEXTS)]
            for start in range(0, len(rows), TEXTS_AT_ONCE):
                for field in fields:
                    texts = domain.texts(rows[start : start + TEXTS_AT_ONCE], field)
                    yield from (text for text in texts if text is not None)


def open_backbones(
    config: ModelConfig,
    run: Run,
    texts: Callable[[Sequence[str]], Iterable[str]],
    weights: Mapping[str, Path],
    given: Mapping[str, Backbone] | None = None,
) -> dict[str, Backbone]:
    """A local folder for every backbone: given, found by name, or started in the run's folder.

    The main process starts them; the others wait.
    """
    folder = run.folder / BACKBONES_FOLDER
    run.by_main(lambda: start_backbones(config, folder, texts, given))
    backbones = find_backbones(config, folder, weights, given, warn=run.log.warn)
    origins = {part: weights_origin(backbone.folder) for part, backbone in backbones.items() if backbone.is_pretrained}
    run.weights = {part: origin.pinned for part, origin in origins.items() if origin is not None}
    return backbones


def start_backbones(
    config: ModelConfig,
    folder: Path,
    texts: Callable[[Sequence[str]], Iterable[str]],
    given: Mapping[str, Backbone] | None = None,
) -> None:
    """Make a folder below `folder` for each backbone that starts from a configuration.

    `texts`: the texts of the fields that it is called with.
    """
    for part, encoder in config.item_encoder.encoders.items():
        # A resumed run finds the folders it began with: it saved no state before they were complete.
        if encoder.weights is None and part not in (given or {}) and not (folder / part).exists():
            with files.writing(folder / part, replace=False) as place:
                encoder_class(encoder).start(encoder, place, texts(config.item_encoder.texts))


def find_backbones(
    config: ModelConfig,
    folder: Path,
    weights: Mapping[str, Path],
    given: Mapping[str, Backbone] | None = None,
    *,
    warn: Callable[[str], object] = warnings.warn,
) -> dict[str, Backbone]:
    """The folder of every backbone: given, named by the recipe, or started below `folder`.

    `warn`: called for weights whose name may mean other weights later.
    """
    backbones = dict(given or {})
    wanted = [encoder.weights for part, encoder in config.item_encoder.encoders.items() if part not in backbones]
    for name in weights:
        if name not in wanted:
            asked = ", ".join(filter(None, wanted)) or "none"
            raise RecipeError(f"--weights {name}: has no effect, no encoder asks for these weights; asked for: {asked}")
    for part, encoder in config.item_encoder.encoders.items():
        if part in backbones:
            continue
        if encoder.weights is None:
            backbones[part] = Backbone(folder / part, is_pretrained=False)
        else:
            backbones[part] = Backbone(find_weights(encoder.weights, weights, warn=warn), is_pretrained=True)
    return backbones


class Readable(Protocol):
    """The fields of a recipe that an item reader needs."""

    @property
    def cache(self) -> Path: ...
    @property
    def data(self) -> DataConfig: ...
    @property
    def prefix(self) -> PrefixConfig: ...


def open_reader(
    sources: Sources, recommender: Recommender, recipe: Readable, run: Run, *, makes_states: bool = True
) -> ItemReader:
    """Call `read_items` in every process; the main process fills the caches first. Every process must call it."""
    for warning in recommender.item_encoder.warnings:
        run.log.warn(warning)
    _say_unread(sources, recommender, run.log)
    read = partial(read_items, sources, recommender, recipe, run, makes_states=makes_states)
    return run.by_main(read) or read()


def _say_unread(sources: Sources, recommender: Recommender, log: RunLog) -> None:
    """Warn of each field that the model reads and no item has: its encoder learns nothing."""
    for domain in sources.domains:
        check_features(domain, recommender.item_encoder.reads)
    check_codes(sources.domains, recommender.item_encoder.reads)
    for field, spec in sorted(recommender.item_encoder.reads.items()):
        if not any(having(domain, field, type(spec)).any() for domain in sources.domains):
            known = sorted({name for domain in sources.domains for name in domain.attributes})
            is_column = field not in {modality.value for modality in Modality}
            columns = f" (further columns: {', '.join(known) or 'none'})" if is_column else ""
            advice = (
                "A model without it" if is_column else "A plan that leaves it behind (finetune/text, finetune/vision)"
            )
            log.warn(
                f"{field}: no item of {', '.join(sources.names)} has one{columns}; its encoder learns nothing here. "
                f"{advice} trains faster"
            )


def read_items(
    sources: Sources, recommender: Recommender, recipe: Readable, run: Run, *, makes_states: bool = True
) -> ItemReader:
    """A reader of the inputs that the model needs, in this process alone.

    States of frozen blocks are computed now, on the device of the run, unless `prefix_cache` is off. Without
    `makes_states`, for a caller that reads every item once, only states that are already cached are used.
    """
    config = recipe.prefix.model_copy(update={"makes": makes_states})
    encoder = recommender.item_encoder
    learns = any(tensor.requires_grad for tensor in encoder.parameters())
    prefixes = find_prefixes(recommender, config, run.log) if learns else {}  # else nothing is read twice
    with bars() as progress:
        reader = ItemReader(
            sources.domains, encoder.reads, expanded(recipe.cache), progress, recipe.data.max_unreadable, run.log.say
        )
        if prefixes:
            recommender.to(run.processes.device)
        for field, prefix in prefixes.items():
            _keep_states(reader, field, prefix, config, run.log, progress)
        if prefixes:
            encoder.keep_states()
    return reader


def find_prefixes(recommender: Recommender, config: PrefixConfig, log: RunLog) -> dict[str, Prefix]:
    """The frozen blocks whose states can be cached, by field. RecipeError if the recipe insists and there are none."""
    prefixes: dict[str, Prefix] = {}
    told: list[Encoder] = []  # one may read several fields
    for field, encoder in recommender.item_encoder.encoders.items() if config.use != "off" else ():
        try:
            prefix = encoder.prefix
        except RecipeError as error:
            if config.insists:
                raise
            if config.makes and encoder not in told:
                log.warn(f"{field}: frozen states are not kept: {error}")
                told.append(encoder)
            continue
        if prefix is not None:
            prefixes[field] = prefix
    if config.insists and not prefixes:
        raise RecipeError(
            "prefix_cache: on, but no encoder has frozen blocks whose states could be kept; say auto or off"
        )
    return prefixes


def _keep_states(
    reader: ItemReader, field: str, prefix: Prefix, config: PrefixConfig, log: RunLog, progress: Progress
) -> None:
    """Cache the states of one encoder; with `auto`, only if there is room. Says so if states may be made."""
    started_s = time.monotonic()
    try:
        tables = reader.keep_states(field, prefix, config, progress)
    except NoRoomError as error:
        if config.insists:
            raise
        if config.makes:
            log.warn(f"{field}: frozen states are not kept: {error}")
        return
    if config.makes:
        log.say(
            f"{field}: frozen states are kept in {config.precision}, {tables.num_bytes / 1e6:,.1f} MB, "
            f"ready after {time.monotonic() - started_s:.1f} s"
        )


class Cut(Protocol):
    """The settings of a training that decide how its steps are divided."""

    @property
    def batch_users(self) -> int: ...
    @property
    def gather(self) -> bool | None: ...
    @property
    def accumulate(self) -> AccumulateConfig: ...


class Batches:
    """The batches of this process: its share of every step."""

    def __init__(
        self,
        config: DataConfig,
        sources: Sources,
        reader: ItemReader,
        task: TrainingTask,
        batch_users: int,
        seed: int,
        processes: Processes,
        log: RunLog,
        gather: bool | None = None,
        parts: int = 1,
        examples: Sequence[Examples] | None = None,
        beside: Batches | None = None,
    ) -> None:
        """`gather`: items are divided among processes, and negatives are those of all; None: if there are several.

        `parts`: number of parts in which the users of a step are processed, each with its own negatives; equal in every
        process. `examples`: those of validation, by domain, in place of training's; they are not logged. `beside`: the
        batches of training, with which they share a catalogue that every step holds.
        """
        if examples is None:
            log.say(shared_out(batch_users, processes.world, gather, config.kind.unit), *sources.told)
            if parts > 1:
                log.say(f"a step passes in {parts} parts; negatives of a user are those of its part alone")
            for warning in reader.warnings:
                log.warn(warning)
        self._sources = sources
        division = Division(processes.rank, processes.world, gathers(gather, processes.world), parts)
        rules = (sources.splits, reader, config, task.requests, batch_users, seed, division)
        self._builder: BatchBuilder = BatchBuilder(*rules, examples, None if beside is None else beside._builder)
        for warning in self._builder.warnings if examples is None else ():
            log.warn(warning)
        self._loader = BatchLoader(self._builder, config.workers)
        self._reader = reader
        # The catalogue, where every step holds all of it.
        self._resident: dict[torch.device, ItemInputs] = {} if beside is None else beside._resident

    @classmethod
    def of(
        cls, config: DataConfig, sources: Sources, reader: ItemReader, task: TrainingTask, cut: Cut, seed: int, run: Run
    ) -> Batches:
        """The batches of a run, divided as its training settings say. RecipeError where there are too few items."""
        refuse_idle_parts(cut.accumulate, sources.num_items)
        num_apart = 1 if gathers(cut.gather, run.processes.world) else run.processes.world
        num_shares = num_apart * cut.accumulate.user_parts
        check_pairs(task, config, sources.domains, cut.batch_users, num_shares, run.log)
        rules = (config, sources, reader, task, cut.batch_users, seed, run.processes, run.log)
        return cls(*rules, gather=cut.gather, parts=cut.accumulate.user_parts)

    @property
    def steps_per_epoch(self) -> int:
        return self._builder.steps_per_epoch

    def first(self) -> Batch:
        """The first batch of the training, read by this process."""
        return self._builder.build(0, 0)

    def epoch(self, epoch: int, done: int = 0) -> Iterable[Batch]:
        """The batches of an epoch, counted from 1, without its first `done` steps."""
        return self._loader.epoch(epoch - 1, done)

    def to_device(self, batch: Batch, device: torch.device) -> Batch:
        """A copy on `device`, with cached states of frozen blocks."""
        if batch.items is self._builder.catalogue:
            if device not in self._resident:
                self._resident[device] = self._reader.to_device(batch.items, device)
            items = self._resident[device]
        else:
            items = self._reader.to_device(batch.items, device)
        more = tuple(self.to_device(part, device) for part in batch.more)
        return to_device(dataclasses.replace(batch, items=items, more=more), device)

    def item_names(self, domain_U: Tensor, row_U: Tensor) -> list[str]:
        """`domain/item` of each, for messages."""
        domains = [self._sources.domains[int(index)] for index in domain_U]
        return [f"{d.name}/{d.item_ids[int(row)].as_py()}" for d, row in zip(domains, row_U, strict=True)]
