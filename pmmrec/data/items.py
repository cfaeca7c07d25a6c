"""Read items of several domains as inputs of encoders."""
# U distinct items, R of them with a modality, K tokens of all texts, C H W of an image.

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmmrec.contracts import (
    FieldInputs,
    FieldSpec,
    IdSpec,
    ItemInputs,
    PixelInputs,
    PixelSpec,
    Prefix,
    PrefixSlots,
    StoredInputs,
    TextSpec,
    TokenInputs,
    ValueInputs,
    ValueSpec,
    to_device,
)
from pmmrec.data.cache import ContentCache, Say, silent
from pmmrec.data.contents import (
    MAX_UNREADABLE,
    Contents,
    check_readable,
    contents_of,
    having,
    is_readable,
    kinds_of,
)
from pmmrec.data.domain import Domain
from pmmrec.data.images import GREY, PixelTable, pixels_source
from pmmrec.data.info import ITEMS_FILE
from pmmrec.data.prefix import Chunk, DeviceRoom, PrefixConfig, PrefixTable, PrefixTables, TableRequest
from pmmrec.data.releases import made_by
from pmmrec.data.text import TokenTable
from pmmrec.modality import Modality, VectorSpec
from pmmrec.packing import HostArray, Ints, Packing, packing_of
from pmmrec.progress import Progress

STATES_AT_ONCE = 256  # items per forward of a frozen part


class ItemReader:
    """Reads fields of items: token ids and pixels from tables made once for each domain, and stored features.

    An item without any field that the model reads gets no row in an encoder; `warnings` names such items, one line
    for each domain. A model of item ids reads no field: then only `domain_U` and `row_U` are filled.

    Args:
        domains: Their order gives the domain indices of `read`.
        reads: How the model reads each of its fields, by name.
        cache: Folder of the tables.
        progress: Called while tables are made.
        max_unreadable: DataError where a larger share of a domain's items, or every item, cannot be read.
        say: Told when a damaged table is made again, when another process is waited for, and what was removed from the
            cache.
    """

    def __init__(
        self,
        domains: Sequence[Domain],
        reads: Mapping[str, FieldSpec],
        cache: Path,
        progress: Progress | None = None,
        max_unreadable: float = MAX_UNREADABLE,
        say: Say = silent,
    ) -> None:
        self._kinds = kinds_of(dict(sorted(reads.items())))
        found = [check_readable(domain, self._kinds, max_unreadable) for domain in domains]
        self.warnings = tuple(warning for warning in found if warning is not None)
        self._domains = list(domains)
        self._contents: dict[int, Contents] = {}
        self._kept: dict[str, PrefixTables] = {}
        self._room = DeviceRoom()
        self._fetches = True
        self._cache = ContentCache(cache, say)
        texts = {field: spec.tokenizer for field, spec in reads.items() if isinstance(spec, TextSpec)}
        self._tokenizer = {field: tokenizer.fingerprint for field, tokenizer in texts.items()}
        self._pad_token_id = {field: tokenizer.pad_token_id for field, tokenizer in texts.items()}
        self._tokens = {
            field: [TokenTable.open(domain, tokenizer, self._cache, progress, field) for domain in domains]
            for field, tokenizer in texts.items()
        }
        self._size, self._pixels = 0, dict[int, PixelTable]()
        for pixel_spec in (spec for spec in reads.values() if isinstance(spec, PixelSpec)):
            self._size = pixel_spec.size
            for place, domain in enumerate(domains):
                if domain.has[Modality.IMAGE].any():
                    self._pixels[place] = PixelTable.open(domain, pixel_spec, self._cache, progress)

    def keep_states(
        self, field: str, prefix: Prefix, config: PrefixConfig, progress: Progress | None = None
    ) -> PrefixTables:
        """Read states of the frozen part of an encoder in place of token ids or pixels from now on.

        They are computed now where the cache has none; NoRoomError when they do not fit. Items that `read` returns
        name their states, and `to_device` fetches them. This relies on an item being the same whenever it is read:
        augmentation would have to refuse kept states here.
        """
        tables: list[PrefixTable | None] = []
        slots: list[Ints] = []
        for domain in range(len(self._domains)):
            kind = {field: self._kinds[field]}
            contents = contents_of(self._domains[domain], kind, self._tokens_of(domain), self._cache)
            slots.append(np.searchsorted(contents.distinct, contents.same_as_N))
            table = None
            if len(contents.distinct):
                request = self._table_request(domain, field, contents.distinct, is_pooled=prefix.is_pooled)
                table = PrefixTable.open(prefix, request, config, self._cache, progress)
            tables.append(table)
        kept = PrefixTables(tables, slots, self._room)
        if any(tables):
            self._kept[field] = kept
        return kept

    def names_alone(self) -> ItemReader:
        """A reader of the same items that reads no field of them, for vectors that are computed already."""
        reader = copy.copy(self)
        reader._fetches = False
        return reader

    def to_device(self, items: ItemInputs, device: torch.device | str) -> ItemInputs:
        """A copy on `device`, with kept states fetched."""
        fields = {
            field: self._kept[field].fetch(rows, torch.device(device)) if isinstance(rows, PrefixSlots) else rows
            for field, rows in items.fields.items()
        }
        return to_device(dataclasses.replace(items, fields=fields), device)

    def read(self, domain_U: Ints, row_U: Ints) -> ItemInputs:
        """The inputs of these items (at least one, no item twice), in their order."""
        has_U = {field: self._has(field, domain_U, row_U) for field in self._kinds}
        reads = {field: has for field, has in has_U.items() if self._kinds[field] is not IdSpec and self._fetches}
        return ItemInputs(
            domain_U=torch.from_numpy(domain_U.astype(np.int64)),
            row_U=torch.from_numpy(row_U.astype(np.int64)),
            has_U={field: torch.from_numpy(has) for field, has in has_U.items()},
            fields={field: self._inputs(field, domain_U, row_U, has) for field, has in reads.items()},
        )

    def has(self, domain_U: Ints, row_U: Ints) -> dict[str, Tensor]:
        """Which of these items have each field that the model reads."""
        return {field: torch.from_numpy(self._has(field, domain_U, row_U)) for field in self._kinds}

    def catalogue(self, domain: int, chunk: int) -> Iterator[ItemInputs]:
        """Each distinct content of one domain once, at most `chunk` items at a time; `row_U` holds their rows.

        The first of several equal items stands for all; items that cannot be read are left out: see `contents`. The
        longest texts come first, so there is little padding, and what does not fit into memory fails at once.
        """
        rows = self.in_order(domain)
        for start in range(0, len(rows), chunk):
            some = rows[start : start + chunk]
            yield self.read(np.full(len(some), domain), some)

    def first_user(self, domain: int) -> int:
        """The place of a domain's first user among the users of all domains."""
        return sum(one.num_users for one in self._domains[:domain])

    def in_order(self, domain: int) -> Ints:
        """The rows of one domain that `catalogue` gives, in its order."""
        rows = self.contents(domain).distinct
        if self._tokens:
            num_tokens_N = np.sum([tables[domain].num_tokens for tables in self._tokens.values()], axis=0)
            rows = rows[np.argsort(-num_tokens_N[rows], kind="stable")]
        return rows

    def is_readable(self, domain: int) -> NDArray[np.bool_]:
        """Which items of one domain have something that the model reads, `(N,)`."""
        return is_readable(self._domains[domain], self._kinds)

    def fingerprint(self, domain: int) -> str:
        """A hash of the items of one domain and of how they are read."""
        opened = self._domains[domain]
        words = [opened.info.sha256(ITEMS_FILE), *self._kinds]
        for field in sorted(self._tokens):
            words += [self._tokenizer[field], made_by("tokens")]
        words += [opened.info.features[field].sha256 for field, kind in self._kinds.items() if kind is VectorSpec]
        if domain in self._pixels:
            words.append(pixels_source(opened, self._size))
        return hashlib.sha256(" ".join(words).encode()).hexdigest()

    def contents(self, domain: int) -> Contents:
        """Which items of one domain are the same and which can be read; computed at first use."""
        if domain not in self._contents:
            tokens = self._tokens_of(domain)
            self._contents[domain] = contents_of(self._domains[domain], self._kinds, tokens, self._cache)
        return self._contents[domain]

    def _tokens_of(self, domain: int) -> dict[str, TokenTable]:
        """The token ids of one domain, by field."""
        return {field: tables[domain] for field, tables in self._tokens.items()}

    def _has(self, field: str, domain_U: Ints, row_U: Ints) -> NDArray[np.bool_]:
        has_U = np.zeros(len(row_U), dtype=bool)
        for domain, places in _by_domain(domain_U):
            has_U[places] = having(self._domains[domain], field, self._kinds[field])[row_U[places]]
        return has_U

    def _table_request(self, domain: int, field: str, distinct: Ints, *, is_pooled: bool) -> TableRequest:
        """The table of frozen states of one domain: each distinct content once."""
        is_text = self._kinds[field] is TextSpec
        if is_text:
            num_rows_R = self._tokens[field][domain].num_tokens[distinct]
            digest = hashlib.sha256()
            for row in distinct.tolist():
                content = self._tokens[field][domain].content(row)
                digest.update(len(content).to_bytes(8, "big") + content)
            key = digest.hexdigest()
        else:
            num_rows_R = np.ones(len(distinct), dtype=np.int64)
            key = pixels_source(self._domains[domain], self._size)
        order = np.argsort(-num_rows_R, kind="stable")
        chunks = partial(self._chunks, domain, field, distinct, order)
        if is_pooled:
            num_rows_R = np.ones_like(num_rows_R)
        return TableRequest(key, num_rows_R, is_text and not is_pooled, chunks)

    def _chunks(self, domain: int, field: str, distinct: Ints, order: Ints) -> Iterator[Chunk]:
        for start in range(0, len(order), STATES_AT_ONCE):
            slot_R = order[start : start + STATES_AT_ONCE]
            rows, has_R = distinct[slot_R], np.ones(len(slot_R), dtype=bool)
            items = (np.full(len(rows), domain), rows, has_R)
            is_text = self._kinds[field] is TextSpec
            yield Chunk(slot_R, self._texts(field, *items) if is_text else self._images(*items))

    def _inputs(self, field: str, domain_U: Ints, row_U: Ints, has_U: NDArray[np.bool_]) -> FieldInputs:
        if field in self._kept:
            return self._kept[field].slots(domain_U[has_U], row_U[has_U], _places(has_U))
        kind = self._kinds[field]
        if kind is TextSpec:
            return self._texts(field, domain_U, row_U, has_U)
        if kind is PixelSpec:
            return self._images(domain_U, row_U, has_U)
        if kind is ValueSpec:
            return self._values(field, domain_U, row_U, has_U)
        return self._stored(field, domain_U, row_U, has_U)

    def _texts(self, field: str, domain_U: Ints, row_U: Ints, has_U: NDArray[np.bool_]) -> TokenInputs:
        item_index = np.flatnonzero(has_U)
        if len(item_index) == 0:
            pad_K = torch.full((1,), self._pad_token_id[field], dtype=torch.int64)
            return TokenInputs(pad_K, Packing([1]), HostArray(_places(has_U)))
        domain_R, row_R = domain_U[item_index], row_U[item_index]
        length_R = np.zeros(len(item_index), dtype=np.int64)
        for domain, places in _by_domain(domain_R):
            length_R[places] = self._tokens[field][domain].num_tokens_of(row_R[places])
        packing, order_R = packing_of(length_R)
        token_id_K = np.empty(packing.num_places, dtype=np.int64)
        domain_K = domain_R[order_R][packing.row_K]
        for domain, places in _by_domain(domain_R[order_R]):
            token_id_K[domain_K == domain] = self._tokens[field][domain].read(row_R[order_R][places])
        return TokenInputs(torch.from_numpy(token_id_K), packing, HostArray(item_index[order_R]))

    def _images(self, domain_U: Ints, row_U: Ints, has_U: NDArray[np.bool_]) -> PixelInputs:
        item_index = np.flatnonzero(has_U)
        if len(item_index) == 0:
            grey_RCHW = torch.full((1, 3, self._size, self._size), GREY, dtype=torch.uint8)
            return PixelInputs(grey_RCHW, HostArray(_places(has_U)))
        pixels_RCHW = np.empty((len(item_index), 3, self._size, self._size), dtype=np.uint8)
        for domain, places in _by_domain(domain_U[item_index]):
            pixels_RCHW[places] = self._pixels[domain].read(row_U[item_index[places]])
        return PixelInputs(torch.from_numpy(pixels_RCHW), HostArray(item_index))

    def _stored(self, field: str, domain_U: Ints, row_U: Ints, has_U: NDArray[np.bool_]) -> StoredInputs:
        item_index = np.flatnonzero(has_U)
        infos = [domain.feature(field).info for domain in self._domains]
        dtype = np.result_type(*(info.dtype for info in infos))  # float16 of one domain and float32 of another: float32
        vector_RF = np.zeros((max(1, len(item_index)), *infos[0].shape), dtype=dtype)
        for domain, places in _by_domain(domain_U[item_index]):
            vector_RF[places] = self._domains[domain].feature(field).read(row_U[item_index[places]])
        return StoredInputs(torch.from_numpy(vector_RF), HostArray(_places(has_U)))

    def _values(self, field: str, domain_U: Ints, row_U: Ints, has_U: NDArray[np.bool_]) -> ValueInputs:
        item_index = np.flatnonzero(has_U)
        key_R = np.zeros(max(1, len(item_index)), dtype=np.int64)
        for domain, places in _by_domain(domain_U[item_index]):
            key_R[places] = self._domains[domain].value_keys(field)[row_U[item_index[places]]]
        return ValueInputs(torch.from_numpy(key_R), HostArray(_places(has_U)))


def _places(has_U: NDArray[np.bool_]) -> Ints:
    """The places of the items that have a field; one behind all items where none has it, for a row that stands in."""
    return np.flatnonzero(has_U) if has_U.any() else np.array([len(has_U)])


def _by_domain(domain_U: Ints) -> Iterator[tuple[int, Ints]]:
    """Each domain index that occurs, and where."""
    for domain in np.unique(domain_U):
        yield int(domain), np.flatnonzero(domain_U == domain)
