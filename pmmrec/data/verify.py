"""Check that the files of a domain are unchanged and follow the rules of its format.

Splits and impressions that were stored beside a domain are checked too: they fit its users, items and sequences.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmmrec.data.domain import Domain, check_size
from pmmrec.data.images import PictureError, pixels
from pmmrec.data.info import (
    DOMAIN_FILE,
    IMAGES_FILE,
    ITEMS_FILE,
    REJECTED_FILE,
    SEQUENCES_FILE,
    DomainInfo,
    feature_file,
    read_info,
)
from pmmrec.data.parallel import in_order
from pmmrec.data.splits import split_of
from pmmrec.data.splits.given import SPLITS_FOLDER, GivenConfig
from pmmrec.data.splits.impressions import IMPRESSIONS_FOLDER, ImpressionsConfig
from pmmrec.data.splits.stored import is_changed, stored_in
from pmmrec.data.write import fingerprint_of, ids_as_bytes, record_of
from pmmrec.errors import DataError
from pmmrec.homes import expanded
from pmmrec.modality import Modality
from pmmrec.settings import PartConfig

MAX_SHOWN = 5
NUM_THREADS = 4
ROWS_AT_ONCE = 4096


def verify_domain(folder: Path) -> list[str]:
    """Every problem found, one line each; empty for a domain without problems. Reads all files, decodes all images."""
    folder = expanded(folder)
    problems: list[str] = []
    try:
        problems += _changed_files(folder, read_info(folder))
        domain = Domain.open(folder)
    except DataError as error:
        return [*problems, *({str(error)} - {*problems})]
    if not problems:  # checks of the content of changed files would only repeat them
        problems = [
            *_broken_arrow(domain),
            *_wrong_counts(domain),
            *_wrong_features(domain),
            *_wrong_ids(domain),
            *_wrong_sequences(domain),
            *_undecodable(domain),
        ]
    return [*problems, *_wrong_splits(domain)]


def _changed_files(folder: Path, info: DomainInfo) -> Iterator[str]:
    features = {feature_file(name): feature for name, feature in info.features.items()}
    for name, record in {**info.files, **features}.items():
        try:
            check_size(folder / name, record)
        except DataError as error:
            yield str(error)
            continue
        if record_of(folder / name).sha256 != record.sha256:
            yield f"{folder / name}: changed after it was written (its sha256 is not that in {DOMAIN_FILE})"
    if fingerprint_of(info.files) != info.fingerprint:
        yield f"{folder / DOMAIN_FILE}: fingerprint is not that of its files"


def _broken_arrow(domain: Domain) -> Iterator[str]:
    for name in (*domain.info.files, *map(feature_file, domain.info.features)):
        path = domain.folder / name
        if name == REJECTED_FILE:
            continue
        try:
            with pa.memory_map(str(path)) as source:
                for batch in pa.ipc.open_file(source).read_all().to_batches():
                    batch.validate(full=True)
        except pa.ArrowException as error:
            yield f"{path}: broken: {error}"


def _wrong_counts(domain: Domain) -> Iterator[str]:
    for modality, is_there in domain.has.items():
        said, found = domain.info.num_with.get(modality, 0), int(is_there.sum())
        if said != found:
            yield f"{domain.folder}: {found:,} items have {modality.value} where {DOMAIN_FILE} says {said:,}"
    num_bare = int((~domain.has[Modality.TEXT] & ~domain.has[Modality.IMAGE]).sum())
    if num_bare:
        yield f"{domain.folder / ITEMS_FILE}: {num_bare:,} items have neither text nor image"


def _wrong_features(domain: Domain) -> Iterator[str]:
    for name, info in domain.info.features.items():
        try:
            table = domain.feature(name)
        except DataError as error:
            yield str(error)
            continue
        if (found := int(table.has_N.sum())) != info.num_with:
            yield f"{table.path}: {found:,} items have one where {DOMAIN_FILE} says {info.num_with:,}"
        starts = range(0, domain.num_items, ROWS_AT_ONCE)
        read = (table.read(np.arange(start, min(start + ROWS_AT_ONCE, domain.num_items))) for start in starts)
        if not all(np.isfinite(rows).all() for rows in read):
            yield f"{table.path}: holds numbers that are not finite"


def _wrong_splits(domain: Domain) -> Iterator[str]:
    """Splits and impressions that were changed, cannot be read, or do not fit the users and items of the domain."""
    for path in stored_in(domain.folder / SPLITS_FOLDER):
        yield from _wrong_split(path, GivenConfig.model_construct(name=path.stem), domain)
    for path in stored_in(domain.folder / IMPRESSIONS_FOLDER):
        yield from _wrong_split(path, ImpressionsConfig.model_construct(name=path.stem), domain)


def _wrong_split(path: Path, config: PartConfig, domain: Domain) -> Iterator[str]:
    try:
        split_of(config, domain)
    except DataError as error:
        yield str(error)
        return
    if is_changed(path):
        yield f"{path}: changed after it was stored; store it again"


def _wrong_ids(domain: Domain) -> Iterator[str]:
    for file, ids in ((ITEMS_FILE, domain.item_ids), (SEQUENCES_FILE, domain.user_ids)):
        if ids.null_count or pc.any(pc.equal(ids, "")).as_py():
            yield f"{domain.folder / file}: an id is empty"
        num_twice = len(ids) - pc.count_distinct(ids, mode="all").as_py()
        if num_twice:
            yield f"{domain.folder / file}: {num_twice:,} ids occur more than once"
    digest = hashlib.sha256()
    for chunk in domain.item_ids.chunks:
        digest.update(ids_as_bytes(chunk))
    if digest.hexdigest() != domain.item_ids_fingerprint:
        yield f"{domain.folder / DOMAIN_FILE}: item_ids_fingerprint is not that of the item ids"


def _wrong_sequences(domain: Domain) -> Iterator[str]:
    path = domain.folder / SEQUENCES_FILE
    num_empty = int((np.diff(domain.sequence_offsets) == 0).sum())
    if num_empty:
        yield f"{path}: {num_empty:,} users have no interaction"
    unordered = [user for user in range(domain.num_users) if _goes_back(domain.times(user))]
    if unordered:
        yield f"{path}: times go back in {len(unordered):,} sequences, such as of users {unordered[:MAX_SHOWN]}"


def _goes_back(times: np.ndarray | None) -> bool:
    return times is not None and bool((times[1:] < times[:-1]).any())


def _undecodable(domain: Domain) -> Iterator[str]:
    def problem(row: int) -> str | None:
        try:
            pixels(domain.jpegs(np.array([row]))[0], size=8)
        except PictureError as error:
            return f"{domain.folder / IMAGES_FILE}: image of item row {row}: {error}"
        return None

    rows = np.flatnonzero(domain.has[Modality.IMAGE]).tolist()
    found = [line for line in in_order(problem, rows, NUM_THREADS) if line is not None]
    yield from found[:MAX_SHOWN]
    if len(found) > MAX_SHOWN:
        yield f"{domain.folder / IMAGES_FILE}: and {len(found) - MAX_SHOWN:,} more images that cannot be decoded"
