"""Find the items of a domain that are the same to a model, and those that a model cannot read."""
# N items of a domain.

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from pmmrec.contracts import FieldSpec, IdSpec, PixelSpec, TextSpec, ValueSpec
from pmmrec.data.cache import ContentCache
from pmmrec.data.domain import Domain
from pmmrec.data.features import FeatureTable
from pmmrec.data.info import IMAGES_FILE
from pmmrec.data.text import TokenTable, first_equal
from pmmrec.errors import DataError
from pmmrec.modality import Modality, VectorSpec

Ints = NDArray[np.int64]
SAME_AS = "same_as.npy"
IMAGES_AT_ONCE = 256
VECTORS_AT_ONCE = 4096
MAX_UNREADABLE = 0.05  # share of a domain's items

Kinds: TypeAlias = Mapping[str, type[FieldSpec]]  # how a model reads each field, without a tokenizer


@dataclass(frozen=True)
class Contents:
    """Which items of one domain have the same content, and which can be read."""

    same_as_N: Ints  # first row with the same content; an item without a double names itself
    is_readable_N: NDArray[np.bool_]  # has a field that the model reads; a model of item ids reads every item

    @property
    def distinct(self) -> Ints:
        """The first row of each distinct content that can be read."""
        is_first_N = self.same_as_N == np.arange(len(self.same_as_N))
        return np.flatnonzero(is_first_N & self.is_readable_N)


def kinds_of(reads: Mapping[str, FieldSpec]) -> Kinds:
    """How each field is read."""
    return {field: type(spec) for field, spec in reads.items()}


def having(domain: Domain, field: str, kind: type[FieldSpec]) -> NDArray[np.bool_]:
    """Which items of a domain have a field that is read in this way, `(N,)`."""
    if kind is IdSpec:
        return np.ones(domain.num_items, dtype=bool)
    if kind is PixelSpec:
        return domain.has[Modality.IMAGE]
    return domain.feature(field).has_N if kind is VectorSpec else domain.has_text(field)


def contents_of(domain: Domain, kinds: Kinds, tokens: Mapping[str, TokenTable], cache: ContentCache) -> Contents:
    """Compare items by their token ids, image bytes, stored features and attributes, as far as a model reads them.

    No two are the same to a model that knows their ids. `tokens` holds the table of each text. `cache` keeps the
    comparisons of images and features; raises MachineError where it cannot be written.
    """
    same_as_N = np.arange(domain.num_items)
    compared = {} if IdSpec in kinds.values() else kinds
    for place, (field, kind) in enumerate(sorted(compared.items())):
        if kind is TextSpec:
            same_field_N = tokens[field].first_same()
        elif kind is PixelSpec:
            same_field_N = _same_images(domain, cache)
        elif kind is ValueSpec:
            same_field_N = first_equal(domain.value_keys(field))
        else:
            same_field_N = _same_features(domain, field, cache)
        same_as_N = first_equal(same_as_N * domain.num_items + same_field_N) if place else same_field_N
    return Contents(same_as_N, is_readable(domain, kinds))


def is_readable(domain: Domain, kinds: Kinds) -> NDArray[np.bool_]:
    """Which items have a field that the model reads, `(N,)`; all of them for a model of item ids."""
    if not kinds:
        return np.ones(domain.num_items, dtype=bool)
    has_something_N: NDArray[np.bool_] = np.any([having(domain, *one) for one in kinds.items()], axis=0)
    return has_something_N


def check_features(domain: Domain, reads: Mapping[str, FieldSpec]) -> None:
    """DataError where a stored feature of the domain is missing, or has another shape than a model reads."""
    for name, spec in reads.items():
        if not isinstance(spec, VectorSpec):
            continue
        if name not in domain.info.features and (advice := _how_to_store(domain, name, spec)) is not None:
            raise DataError(f"{domain.folder}: items have no feature {name!r}, which the model reads; {advice}")
        info = domain.feature(name).info
        shape = info.shape
        if info.num_values != spec.num_values:
            both = (info.num_values, spec.num_values)
            found, wanted = ("vectors" if one is None else f"codes of {one} values" for one in both)
            verb = "features" if spec.num_values is None else "codes"
            raise DataError(
                f"{domain.folder}: feature {name!r} holds {found}, but the model reads {wanted}; name another feature, "
                f"or make one: pmmrec data {verb}"
            )
        if shape != spec.shape:
            found, wanted = (" x ".join(map(str, one)) for one in (shape, spec.shape))
            raise DataError(
                f"{domain.folder}: feature {name!r} holds {found} numbers an item, but the model reads vectors of "
                f"{wanted}; set that in model.item_encoder, or store the feature that the model was trained on"
            )


def check_codes(domains: Sequence[Domain], reads: Mapping[str, FieldSpec]) -> None:
    """DataError where domains that train together have codes that were fitted apart, and mean other things in each."""
    for name, spec in reads.items():
        if not isinstance(spec, VectorSpec) or spec.num_values is None:
            continue
        fits = {domain.feature(name).info.source: domain for domain in domains}
        if len(fits) > 1:
            apart = " and ".join(str(domain.folder) for domain in fits.values())
            folders = " ".join(str(domain.folder) for domain in domains)
            raise DataError(
                f"{apart}: their {name} were fitted apart, so that a code means another thing in each; make them "
                f"together: `pmmrec data codes {folders} ...`"
            )


def _how_to_store(domain: Domain, name: str, spec: VectorSpec) -> str | None:
    """The command that makes a feature of several vectors, or one of codes."""
    if spec.num_values is not None:
        return (
            f"`pmmrec data codes {domain.folder} --feature VECTORS --parts {spec.shape[0]} --out {name}` makes codes "
            "of a stored feature VECTORS"
        )
    if len(spec.shape) == 1:
        return None
    return (
        f"`pmmrec data features {domain.folder} --from RECIPE --vectors text.layers --name {name}` stores the "
        "hidden states of a text encoder (image.layers: of an image encoder), `--from FILE.npy` any vectors of "
        f"{' x '.join(map(str, spec.shape))}"
    )


def check_readable(domain: Domain, kinds: Kinds, max_unreadable: float) -> str | None:
    """A warning that names the items without any field that the model reads; None where there are none.

    Raises DataError where no item can be read, or where a larger share than `max_unreadable` cannot.
    """
    bare = np.flatnonzero(~is_readable(domain, kinds))
    if not len(bare):
        return None
    wanted = " or ".join(sorted(kinds))
    first = ", ".join(repr(domain.item_ids[int(row)].as_py()) for row in bare[:5])
    found = (
        f"{domain.folder}: {len(bare):,} of {domain.num_items:,} items have no {wanted} for the model to read "
        f"({first}{', ...' if len(bare) > 5 else ''})"
    )
    if len(bare) == domain.num_items:
        raise DataError(f"{found}; give them one, or use a model that reads what they have")
    if len(bare) > max_unreadable * domain.num_items:
        raise DataError(
            f"{found}, more than the share of {max_unreadable:g} that may be so; import the domain without them, give "
            f"them one, raise data.max_unreadable (--max-unreadable), or use a model that reads what they have"
        )
    return (
        f"{found}; they count as zero vectors in histories and are never recommended, and whoever takes one next "
        f"counts as a miss"
    )


def _first_same(rows: Ints, keys: Iterable[Hashable]) -> Ints:
    """For each of `rows` the first one with the same key."""
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, int(row)) for row, key in zip(rows, keys, strict=True)], dtype=np.int64)


def _same_images(domain: Domain, cache: ContentCache) -> Ints:
    """The first row with the same stored image, `(N,)`; compared now, in one pass, if `cache` does not hold it."""
    rows = np.arange(domain.num_items)
    if not domain.info.parts(IMAGES_FILE):
        return np.zeros_like(rows)

    def make(folder: Path) -> None:
        np.save(folder / SAME_AS, _first_same(rows, _image_hashes(domain, rows)), allow_pickle=False)

    entry = cache.entry("same-images", "image comparisons", {"images": domain.info.sha256(IMAGES_FILE)})
    same_as_N: Ints = entry.open(make, lambda folder: np.load(folder / SAME_AS, allow_pickle=False))
    return same_as_N


def _same_features(domain: Domain, name: str, cache: ContentCache) -> Ints:
    """The first row with the same stored feature, `(N,)`; compared now, in one pass, if `cache` does not hold it."""
    feature = domain.feature(name)

    def make(folder: Path) -> None:
        same_as_N = _first_same(np.arange(domain.num_items), _vector_hashes(feature))
        np.save(folder / SAME_AS, same_as_N, allow_pickle=False)

    entry = cache.entry("same-features", "feature comparisons", {"feature": feature.info.sha256})
    same_as_N: Ints = entry.open(make, lambda folder: np.load(folder / SAME_AS, allow_pickle=False))
    return same_as_N


def _vector_hashes(feature: FeatureTable) -> Iterable[bytes | None]:
    for start in range(0, len(feature.has_N), VECTORS_AT_ONCE):
        rows = np.arange(start, min(start + VECTORS_AT_ONCE, len(feature.has_N)))
        for row, vector in zip(rows, feature.read(rows), strict=True):
            yield hashlib.sha256(vector.tobytes()).digest() if feature.has_N[row] else None


def _image_hashes(domain: Domain, rows: Ints) -> Iterable[bytes | None]:
    for start in range(0, len(rows), IMAGES_AT_ONCE):
        for jpeg in domain.jpegs(rows[start : start + IMAGES_AT_ONCE]):
            yield None if jpeg is None else hashlib.sha256(jpeg).digest()
