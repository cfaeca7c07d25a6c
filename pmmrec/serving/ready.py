"""Open a catalogue whose vectors are kept without building the model that made them.

Beside the item vectors of a domain the store keeps an entry `ready-KEY` for each checkpoint that made them: in
which order they lie, which items are equal, and which can be read. With it the verb `score` needs the user encoder and
the scorer alone, and imports neither transformers nor timm.
"""
# N items of the catalogue.

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from pmmrec.data.cache import CacheEntry, ContentCache, silent
from pmmrec.data.contents import Contents
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.data.releases import made_by
from pmmrec.errors import MachineError
from pmmrec.evaluation.encoded import VERSION as VECTORS_VERSION
from pmmrec.evaluation.encoded import read_vectors
from pmmrec.models.recommender import Recommender
from pmmrec.models.stored import StoredItems
from pmmrec.serving.candidates import EncodedItems, weights_name
from pmmrec.settings import Config
from pmmrec.zoo.checkpoint import Checkpoint, load_recommender

VERSION = 1  # raise it when the files of an entry mean something else
FACTS = "facts.json"
WHAT = "facts of kept item vectors"
ARRAYS = ("rows", "same_as_N", "is_readable_N")


class Ready(NamedTuple):
    """A catalogue with its kept vectors, and a recommender that ranks it."""

    items: EncodedItems
    model: Recommender  # its item encoder is a `StoredItems`
    warnings: tuple[str, ...]  # of the reader that read the items

    def counts(self) -> str:
        """For people."""
        num_items = len(self.items.contents.distinct)
        return f"0 of {num_items:,} items encoded, {num_items:,} kept"


def keep_ready(
    checkpoint: Checkpoint, model: Recommender, reader: ItemReader, encoded: EncodedItems, vectors: CacheEntry
) -> None:
    """Keep what `open_ready` needs of a catalogue that `model` has encoded, beside its `vectors`, if these are kept."""
    config = checkpoint.model_config.item_encoder
    if type(checkpoint) is not Checkpoint or not is_own(config) or model.knows_ids or not vectors.folder.is_dir():
        return
    contents = encoded.contents
    arrays = dict(zip(ARRAYS, (reader.in_order(0), contents.same_as_N, contents.is_readable_N), strict=True))
    facts = {
        "fingerprint": encoded.fingerprint,
        "warnings": list(reader.warnings),
        "streams": dict(model.item_encoder.streams),
    }

    def make(folder: Path) -> None:
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array, allow_pickle=False)
        (folder / FACTS).write_text(json.dumps(facts), encoding="utf-8")

    device = encoded.vectors_ND.device
    with suppress(MachineError):  # a cache that cannot be written has been told of
        _entry(vectors.folder, checkpoint, encoded.domain, device).open(make, _read)


def open_ready(checkpoint: Checkpoint, domain: Domain, cache: Path, device: torch.device) -> Ready | None:
    """The catalogue of a domain by the vectors that are kept; None where some are not.

    Also None for models that know ids, and where a plugin encodes the items.

    Raises CheckpointError where a file of the checkpoint is not that of its index.
    """
    config = checkpoint.model_config.item_encoder
    if type(checkpoint) is not Checkpoint or config.knows_ids or not is_own(config):
        return None
    name = _entry(cache, checkpoint, domain, device).folder.name
    for folder in sorted(cache.glob(f"vectors-*/{name}")):
        try:
            facts, (rows, same_as_N, is_readable_N) = CacheEntry(folder, WHAT, silent, MachineError).open(None, _read)
            vectors_ND = read_vectors(CacheEntry(folder.parent, WHAT, silent, MachineError), rows, same_as_N)
        except (MachineError, OSError, ValueError, LookupError):
            continue  # damaged: the model makes it again
        for entry in checkpoint.parts.values():
            checkpoint.sound_folder(entry)
        stored = StoredItems(config.fields, facts["streams"])
        items = EncodedItems(domain, vectors_ND.to(device), Contents(same_as_N, is_readable_N), facts["fingerprint"])
        model = load_recommender(checkpoint, item_encoder=stored).to(device)
        return Ready(items, model, tuple(facts["warnings"]))
    return None


def is_own(part: Config) -> bool:
    """Whether a part and those inside it are of this package: what a plugin computes is known once it is built."""
    inside = (getattr(part, name) for name in type(part).model_fields)
    is_here = type(part).__module__.partition(".")[0] == __name__.partition(".")[0]
    return is_here and all(is_own(one) for one in inside if isinstance(one, Config))


def _entry(place: Path, checkpoint: Checkpoint, domain: Domain, device: torch.device) -> CacheEntry:
    inputs: dict[str, str | int] = {
        "version": VERSION,
        "vectors": VECTORS_VERSION,
        "checkpoint": weights_name(checkpoint),
        "domain": domain.fingerprint,
        "features": json.dumps({name: info.sha256 for name, info in domain.info.features.items()}, sort_keys=True),
        "releases": made_by("pixels", "tokens", "vectors"),
        "device": device.type,
    }
    return ContentCache(place).entry("ready", WHAT, inputs)


def _read(folder: Path) -> tuple[Any, list[Any]]:
    arrays = [np.load(folder / f"{name}.npy", allow_pickle=False) for name in ARRAYS]
    return json.loads((folder / FACTS).read_text(encoding="utf-8")), arrays
