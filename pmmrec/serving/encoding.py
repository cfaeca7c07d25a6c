"""Encode the items of a domain with a checkpoint, or find the vectors that were kept."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from pmmrec.contracts import FieldSpec
from pmmrec.data.cache import Say, silent
from pmmrec.data.contents import check_features
from pmmrec.data.domain import Domain
from pmmrec.data.items import ItemReader
from pmmrec.evaluation.catalogue import NotFiniteVectorError
from pmmrec.evaluation.encoded import encoder_name, kept_vectors, vectors_entry
from pmmrec.evaluation.share import Share
from pmmrec.modality import VectorSpec
from pmmrec.models.recommender import Recommender
from pmmrec.progress import Progress
from pmmrec.serving.candidates import EncodedItems
from pmmrec.serving.ready import keep_ready
from pmmrec.zoo.checkpoint import Checkpoint

DEVICE_SHARE = 0.2  # of a GPU's free memory, at most, for the vectors of a catalogue; keys may take as much again


def encode(
    checkpoint: Checkpoint,
    recommender: Recommender,
    reader: ItemReader,
    domain: Domain,
    *,
    cache: Path,
    device: torch.device,
    share: Share | None = None,
    must_keep: bool = False,
    progress: Progress | None = None,
    say: Say = silent,
    tell: Say = silent,
) -> EncodedItems:
    """The vectors of all items of a domain: see `kept_vectors`.

    `recommender`: the model of `checkpoint`, on `device`. `reader`: of this domain alone. `tell` is told how many items
    were encoded. Raises NotFiniteVectorError, which names the item.
    """
    weights = encoder_name(recommender, checkpoint.model_config, checkpoint.index.adapters)
    try:
        kept = kept_vectors(
            recommender,
            reader,
            0,
            weights=weights,
            cache=cache,
            device=device,
            keep_on=_home_of(domain.num_items, checkpoint.model_config.width, device),
            share=share,
            must_keep=must_keep,
            progress=progress,
            say=say,
        )
    except NotFiniteVectorError as error:
        raise NotFiniteVectorError(error.row, str(domain.folder), domain.item_ids[error.row].as_py()) from error
    if kept.num_encoded + kept.num_kept:
        tell(f"{domain.name}: {kept.counts()}")
    encoded = EncodedItems(domain, kept.vectors_ND, reader.contents(0), reader.fingerprint(0))
    keep_ready(checkpoint, recommender, reader, encoded, vectors_entry(reader, 0, weights, cache, device))
    return encoded


def features_read(domain: Domain, reads: Mapping[str, FieldSpec]) -> list[str]:
    """The SHA-256 of each stored feature that a model reads; the fingerprint of a domain leaves features out.

    Raises as `check_features`.
    """
    check_features(domain, reads)
    return [domain.feature(name).info.sha256 for name, spec in sorted(reads.items()) if isinstance(spec, VectorSpec)]


def _home_of(num_items: int, width: int, device: torch.device) -> torch.device:
    """Where vectors of so many items are kept: beside the model, or on the CPU where a GPU has not much room."""
    if device.type != "cuda":
        return device
    free, _ = torch.cuda.mem_get_info(device)
    return device if 4 * num_items * width < DEVICE_SHARE * free else torch.device("cpu")
