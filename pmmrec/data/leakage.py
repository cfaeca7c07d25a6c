"""Count what a model may know of its targets: within a domain under a split, and from other domains."""
# N items of a domain, B users of one stretch, H items of their sequences, T targets of a holdout, R training actions.

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmmrec.data.domain import Domain, images_table
from pmmrec.data.sequences import Stretch
from pmmrec.data.splits import HELD_OUT, HoldoutName, Split, SplitPart
from pmmrec.errors import RecipeError

Ints: TypeAlias = NDArray[np.int64]
TEXTS_AT_ONCE = 10_000
NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class TargetLeakage:
    """What training knows of the targets of one holdout."""

    holdout: HoldoutName
    num_targets: int
    num_users: int  # with a target or more
    num_seen: int  # the same user has the same item in training
    num_tied: int | None  # as late as the interaction before, so that the order of rows says which one is held out
    num_before_training: int | None  # earlier than a training interaction of another user
    share_of_training_after: float | None  # of training interactions, later than the target; mean over targets


@dataclass(frozen=True)
class Doubles:
    """How many are equal to another, and how many remain of them if one of each is kept."""

    num_equal: int
    num_groups: int


@dataclass(frozen=True)
class SharedWith:
    """What a domain has in common with another, from which a model may be transferred."""

    source: str
    users: int  # equal ids
    items: int  # equal ids
    texts: int  # items of the domain whose text the other has, too
    images: int  # items of the domain whose picture the other has, too


@dataclass(frozen=True)
class Leakage:
    """The leakage report of one domain. Figures that need times are None where it has none."""

    name: str
    split: str
    targets: tuple[TargetLeakage, ...]
    users: Doubles  # of two interactions or more, with the same items in the same order
    texts: Doubles  # of items
    images: Doubles  # of items
    shared: tuple[SharedWith, ...]


def leakage_of(split: Split, sources: tuple[Domain, ...] = ()) -> Leakage:
    """The leakage report of a domain under a split. Pictures are equal where their files were.

    Raises RecipeError for a split whose targets lie in lists.
    """
    domain = split.domain
    if split.ranks_lists:
        raise RecipeError(f"--split {split.config.type}: its targets lie in lists; name a split of the sequences")
    texts, images = _texts(domain), _images(domain)
    return Leakage(
        name=domain.name,
        split=split.config.type,
        targets=_targets(split),
        users=_doubles(_sequences(domain)),
        texts=_doubles(texts),
        images=_doubles(images),
        shared=tuple(_shared(domain, source, texts, images) for source in sources),
    )


@dataclass(frozen=True)
class _Read:
    """What a pass over the sequences keeps."""

    train_time_R: Ints
    last_M: Ints  # of each user, the time of the last training interaction
    targets: dict[HoldoutName, tuple[NDArray[Any], ...]]  # user, time, is seen, is tied


def _targets(split: Split) -> tuple[TargetLeakage, ...]:
    read = _read(split)
    if split.domain.info.time_unit is None:
        return tuple(
            TargetLeakage(name, len(is_seen_T), len(np.unique(user_T)), int(is_seen_T.sum()), None, None, None)
            for name, (user_T, _, is_seen_T, _) in read.targets.items()
        )
    latest = int(np.argmax(read.last_M))
    second = np.delete(read.last_M, latest).max(initial=NEVER)  # counts for the user whose training ends last
    found = []
    for name, (user_T, time_T, is_seen_T, is_tied_T) in read.targets.items():
        last_of_others_T = np.where(user_T == latest, second, read.last_M[latest])
        num_after_T = len(read.train_time_R) - np.searchsorted(read.train_time_R, time_T, side="right")
        share = float(num_after_T.mean() / len(read.train_time_R)) if len(time_T) and len(read.train_time_R) else None
        num_before = int((time_T < last_of_others_T).sum())
        counts = len(time_T), len(np.unique(user_T)), int(is_seen_T.sum()), int(is_tied_T.sum())
        found.append(TargetLeakage(name, *counts, num_before, share))
    return tuple(found)


def _read(split: Split) -> _Read:
    trained: list[Ints] = []
    last: list[Ints] = []
    targets: dict[HoldoutName, list[tuple[Any, ...]]] = {name: [] for name in HELD_OUT}
    for stretch in split.domain.sequences.stretches(with_times=split.domain.info.time_unit is not None):
        part_H = split.parts(stretch)
        user_H = np.repeat(np.arange(len(stretch.offset_B) - 1), np.diff(stretch.offset_B))
        time_H = np.zeros(len(user_H), np.int64) if stretch.time_H is None else stretch.time_H
        is_train_H = part_H == SplitPart.TRAIN
        key_H = user_H * split.domain.num_items + stretch.item_H
        is_seen_H = np.isin(key_H, key_H[is_train_H])
        is_tied_H = np.append(False, (user_H[1:] == user_H[:-1]) & (time_H[1:] == time_H[:-1]))
        last_B = np.full(len(stretch.offset_B) - 1, NEVER)
        np.maximum.at(last_B, user_H[is_train_H], time_H[is_train_H])
        trained.append(time_H[is_train_H])
        last.append(last_B)
        for name, part in HELD_OUT.items():
            columns = (stretch.first + user_H, time_H, is_seen_H, is_tied_H)
            targets[name].append(tuple(column[part_H == part] for column in columns))
    joined = {name: tuple(map(np.concatenate, zip(*rows, strict=True))) for name, rows in targets.items()}
    return _Read(np.sort(np.concatenate(trained)), np.concatenate(last), joined)


def _doubles(content: Iterator[bytes] | list[bytes | None]) -> Doubles:
    counts = Counter(one for one in content if one is not None)
    equal = [count for count in counts.values() if count > 1]
    return Doubles(sum(equal), len(equal))


def _sequences(domain: Domain) -> Iterator[bytes]:
    """A hash of the items of each user with two interactions or more."""
    for stretch in domain.sequences.stretches():
        yield from (_hash(items.tobytes()) for items in _lists(stretch) if len(items) > 1)


def _lists(stretch: Stretch) -> Iterator[NDArray[np.int32]]:
    offsets = stretch.offset_B.tolist()
    return (stretch.item_H[first:end] for first, end in pairwise(offsets))


def _texts(domain: Domain) -> list[bytes | None]:
    """A hash of the text of each item; None where it has none."""
    found: list[bytes | None] = []
    for first in range(0, domain.num_items, TEXTS_AT_ONCE):
        rows = np.arange(first, min(first + TEXTS_AT_ONCE, domain.num_items))
        found += [None if text is None else _hash(text.encode()) for text in domain.texts(rows)]
    return found


def _images(domain: Domain) -> list[bytes | None]:
    """The SHA-256 of the file of each item's picture; None where it has none."""
    table = images_table(domain.folder, domain.info)
    if table is None:
        return [None] * domain.num_items
    batches = (table.read(number, ["source_sha256"]) for number in range(table.num_batches))
    return [one for batch in batches for one in batch.column("source_sha256").to_pylist()]


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _shared(domain: Domain, source: Domain, texts: list[bytes | None], images: list[bytes | None]) -> SharedWith:
    of_source = {*_texts(source)} - {None}, {*_images(source)} - {None}
    return SharedWith(
        source=source.name,
        users=_num_common(domain.user_ids, source.user_ids),
        items=_num_common(domain.item_ids, source.item_ids),
        texts=sum(one in of_source[0] for one in texts),
        images=sum(one in of_source[1] for one in images),
    )


def _num_common(ids: pa.ChunkedArray, others: pa.ChunkedArray) -> int:
    return len({*ids.to_pylist()} & {*others.to_pylist()})
