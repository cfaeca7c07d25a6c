"""Write a domain from items and users of other domains."""
# N items of a domain, M users, of which K and J are taken. B users of one stretch, H items of their sequences.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmmrec.data.derived.stored_features import features_in_common, take_features
from pmmrec.data.domain import Domain, images_table, items_table
from pmmrec.data.info import DOMAIN_FILE, IMAGES_FILE, IMAGES_SCHEMA, Filters, ImportSummary, SourceFile
from pmmrec.data.splits.given import SPLITS_FOLDER
from pmmrec.data.splits.impressions import IMPRESSIONS_FOLDER
from pmmrec.data.splits.stored import stored_in
from pmmrec.data.write import DomainFolder, new_folder, record_of
from pmmrec.errors import RecipeError
from pmmrec.modality import Modality

BARE_AT_ONCE = 1 << 20  # rows without an image in one batch


@dataclass(frozen=True)
class Part:
    """What a new domain takes from another: items, users, and their interactions with these items, in order.

    `new_item_ids` and `new_user_ids` give other ids to some.
    """

    domain: Domain
    is_item_N: NDArray[np.bool_]
    is_user_M: NDArray[np.bool_]
    new_item_ids: Mapping[str, str] = field(default_factory=dict)
    new_user_ids: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def whole(cls, domain: Domain) -> Part:
        """All items and users of a domain."""
        return cls(domain, np.ones(domain.num_items, dtype=bool), np.ones(domain.num_users, dtype=bool))

    @property
    def num_items(self) -> int:
        return int(self.is_item_N.sum())

    @cached_property
    def has_all_items(self) -> bool:
        return bool(self.is_item_N.all())

    def item_batches(self, attributes: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Its items: `item_id`, `text` and the attributes, which are missing where its domain has none."""
        table = items_table(self.domain.folder, self.domain.info)
        for number in range(table.num_batches):
            found = table.read(number).filter(pa.array(self._of_batch(table.starts, number)))
            nothing = pa.nulls(len(found), pa.large_string())
            ids = _renamed(found.column("item_id"), self.new_item_ids)
            further = [found.column(name) if name in found.schema.names else nothing for name in attributes]
            names = ["item_id", "text", *attributes]
            yield pa.RecordBatch.from_arrays([ids, found.column("text"), *further], names=names)

    def image_batches(self) -> Iterator[pa.RecordBatch]:
        """Its images, a row for each of its items."""
        table = images_table(self.domain.folder, self.domain.info)
        if table is None:
            for first in range(0, self.num_items, BARE_AT_ONCE):
                num_rows = min(BARE_AT_ONCE, self.num_items - first)
                columns = [pa.nulls(num_rows, one.type) for one in IMAGES_SCHEMA]
                yield pa.RecordBatch.from_arrays(columns, schema=IMAGES_SCHEMA)
            return
        for number in range(table.num_batches):
            yield table.read(number).filter(pa.array(self._of_batch(table.starts, number)))

    def _of_batch(self, starts: Sequence[int], number: int) -> NDArray[np.bool_]:
        return self.is_item_N[starts[number] : starts[number + 1]]

    def sequence_batches(self, first_item: int, *, has_times: bool) -> Iterator[pa.RecordBatch]:
        """Its users and their sequences; `first_item`: the row of its first item in the new domain."""
        row_N = first_item + np.cumsum(self.is_item_N) - 1
        for stretch in self.domain.sequences.stretches(with_times=has_times):
            length_B = np.diff(stretch.offset_B)
            is_user_B = self.is_user_M[stretch.first : stretch.first + len(length_B)]
            is_kept_H = np.repeat(is_user_B, length_B) & self.is_item_N[stretch.item_H]
            kept_H = np.concatenate([[0], np.cumsum(is_kept_H)])
            offsets = pa.array(kept_H[np.append(stretch.offset_B[:-1][is_user_B], stretch.offset_B[-1])], pa.int64())
            ids = self.domain.user_ids.slice(stretch.first, len(length_B)).filter(pa.array(is_user_B))
            columns = [_renamed(ids.combine_chunks(), self.new_user_ids)]
            items = row_N[stretch.item_H[is_kept_H]].astype(np.int32)
            columns.append(pa.LargeListArray.from_arrays(offsets, pa.array(items)))
            if stretch.time_H is not None:
                columns.append(pa.LargeListArray.from_arrays(offsets, pa.array(stretch.time_H[is_kept_H])))
            yield pa.RecordBatch.from_arrays(columns, names=["user_id", "items", "times"][: len(columns)])


@dataclass(frozen=True)
class Described:
    """What `domain.json` of a new domain says beside its figures."""

    name: str
    filters: Filters
    time_unit: Literal["as given", "milliseconds"] | None
    left_out: str = ""  # why items, users and interactions were left out, if any were
    notes: tuple[str, ...] = ()


def write_parts(parts: Sequence[Part], out: Path, described: Described) -> Domain:
    """Write the items, users and interactions of all parts, in their order, as a new domain, and open it.

    Features that all domains have, of one shape and one source, are taken over; stored splits and impressions are not,
    and notes name them. Raises what `new_folder` raises; after an error nothing is left.
    """
    attributes = list(dict.fromkeys(name for part in parts for name in part.domain.attributes))
    has_images = any(part.domain.info.parts(IMAGES_FILE) for part in parts)
    has_times = described.time_unit is not None
    first_items = np.cumsum([0, *(part.num_items for part in parts)]).tolist()
    if first_items[-1] > 2**31 - 1:
        raise RecipeError(f"{first_items[-1]:,} items; a domain numbers them in 32 bits, choose fewer")
    with new_folder(out) as (folder, _):
        made = DomainFolder(folder)
        made.write_items((batch for part in parts for batch in part.item_batches(attributes)), attributes)
        if has_images:
            _take_images(parts, made)
        shifted = zip(parts, first_items[:-1], strict=True)
        batches = (batch for part, first in shifted for batch in part.sequence_batches(first, has_times=has_times))
        made.write_sequences(batches, has_times=has_times)
        _seal(parts, made, described, attributes)
    take_features(parts, Domain.open(out))
    return Domain.open(out)


def _take_images(parts: Sequence[Part], made: DomainFolder) -> None:
    infos = [(part.domain, part.domain.info.parts(IMAGES_FILE)) for part in parts]
    if all(part.has_all_items for part in parts) and all(files for _, files in infos):
        paths = [domain.folder / name for domain, files in infos for name in files]
        made.link_images(paths, sum(int(domain.has[Modality.IMAGE].sum()) for domain, _ in infos))
    else:
        made.write_images(batch for part in parts for batch in part.image_batches())


def _seal(parts: Sequence[Part], made: DomainFolder, described: Described, attributes: Sequence[str]) -> None:
    domains = [part.domain for part in parts]
    num_read = {
        "item": sum(domain.num_items for domain in domains),
        "user": sum(domain.num_users for domain in domains),
        "interaction": sum(domain.num_interactions for domain in domains),
    }
    kept = {
        "items": made.num_items,
        "users": made.num_users,
        "interactions": made.num_interactions,
        "texts": made.num_with[Modality.TEXT],
        "images": made.num_with[Modality.IMAGE],
    }
    lost = {kind: count - kept[f"{kind}s"] for kind, count in num_read.items()}
    sides = [domain.info.image_side for domain in domains if domain.info.image_side is not None]
    sources = {}
    for number, domain in enumerate(domains, start=1):
        record = record_of(domain.folder / DOMAIN_FILE)
        role = "domain" if len(domains) == 1 else f"domain {number}"
        sources[role] = SourceFile(**dict(record), file_name=f"{domain.folder.resolve().name}/{DOMAIN_FILE}")
    made.seal(
        described.name,
        filters=described.filters,
        image_side=max(sides) if sides else None,
        time_unit=described.time_unit,
        sources=sources,
        summary=ImportSummary(
            num_items_read=num_read["item"],
            num_interactions_read=num_read["interaction"],
            kept=kept,
            rejected={},
            filtered={kind: {described.left_out: count} for kind, count in lost.items() if count},
            num_pictures_ignored=0,
            notes=(*described.notes, *_notes(parts, attributes)),
        ),
    )


def _notes(parts: Sequence[Part], attributes: Sequence[str]) -> Iterator[str]:
    domains, taken = [part.domain for part in parts], features_in_common(parts)
    names = ", ".join(f"{domain.name} ({domain.num_items:,} items, {domain.num_users:,} users)" for domain in domains)
    yield f"made of {names}"
    for domain in domains:
        lacking = [name for name in attributes if name not in domain.attributes]
        if lacking:
            yield f"items of {domain.name} have no column {', '.join(lacking)}"
        left = {"features": [name for name in domain.info.features if name not in taken]}
        for kind, folder in (("split", SPLITS_FOLDER), ("impressions", IMPRESSIONS_FOLDER)):
            left[kind] = [path.stem for path in stored_in(domain.folder / folder)]
        for kind, found in left.items():
            if found:
                what = "splits" if kind == "split" else kind
                told = f"{what} of {domain.name} not taken over: {', '.join(found)}"
                yield f"{told}; `pmmrec data {kind}` stores them again"
    if taken:
        yield f"features taken over: {', '.join(taken)}"


def _renamed(ids: pa.Array, new_ids: Mapping[str, str]) -> pa.Array:
    if not new_ids:
        return ids
    return pa.array([new_ids.get(one, one) for one in ids.to_pylist()], pa.large_string())
