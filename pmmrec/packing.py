"""Rows of different lengths one after another, without padding, and attention over them."""
# Shapes: R rows, T places of the longest row, K places of all rows, H heads, E width of a head, G rows of a span.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pmmrec.attention_dropout import AttentionWithDropout, RowsAtOnce

Ints = NDArray[np.int64]
# What one more call of attention costs, and the copy of a padded place, in pairs of places. Measured at width 128 on a
# CPU; elsewhere a call is mostly the start of some kernels.
PAIRS_OF_SPAN: Mapping[str, int] = {"cpu": 1 << 10}
PAIRS_OF_SPAN_ELSEWHERE = 1 << 21
PAIRS_OF_PLACE = 10
MAX_PINNED_BYTES = 1 << 28


def sent(x: Tensor, device: torch.device, *, copy: bool = False) -> Tensor:
    """The tensor on `device`, without making the host wait: to a GPU it goes through page-locked memory.

    `copy`: a new tensor also where it lies on `device` already. Page-locked memory is reused and never given back, so
    what is larger than `MAX_PINNED_BYTES` (a whole catalogue, sent once) goes without.
    """
    is_upload = device.type == "cuda" and x.device.type == "cpu"
    if is_upload and x.numel() * x.element_size() <= MAX_PINNED_BYTES:
        x = x.pin_memory()
    return x.to(device, non_blocking=True, copy=copy)


class HostArray:
    """Numbers that the host knows, and a tensor of them on each device that asks, made at the first request.

    Nothing has to be read back from a device, which would make the host wait for it. `to_device` leaves it alone.
    """

    def __init__(self, values: NDArray[Any] | Sequence[int]) -> None:
        """`values`: an array, or whole numbers."""
        self.values = values if isinstance(values, np.ndarray) else np.asarray(values, dtype=np.int64)
        self._on: dict[torch.device, Tensor] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return HostArray, (self.values,)

    def __len__(self) -> int:
        return len(self.values)

    def on(self, device: torch.device) -> Tensor:
        """The tensor on `device`."""
        if device not in self._on:
            # A copy on a CPU too: the numbers of the host are not shared. A later backward may need it.
            with torch.inference_mode(False):  # torch.compile traces no `mode=False`
                self._on[device] = sent(torch.from_numpy(self.values), device, copy=True)
        return self._on[device]


class Span:
    """Neighbouring rows of a packing that attend in one call."""

    def __init__(self, length_G: Ints) -> None:
        """`length_G`: of its rows, falling."""
        self.length_G, self.longest, self.num_places = length_G, int(length_G[0]), int(length_G.sum())
        self._bands: dict[int, HostArray] = {}
        self._rows: dict[tuple[torch.device, int | None, bool], RowsAtOnce] = {}

    @property
    def is_even(self) -> bool:
        """Whether all rows are equally long, so that none needs padding."""
        return self.longest == int(self.length_G[-1])

    @cached_property
    def is_valid_GT(self) -> HostArray:
        """Bool: which places of the padded rows are not padding."""
        return HostArray(np.arange(self.longest) < self.length_G[:, None])

    @cached_property
    def source_GT(self) -> HostArray:
        """For each padded place, flat, one of the span: its own, or where it is padding the first of its row."""
        first_G = np.cumsum(self.length_G) - self.length_G
        offset_GT = np.where(self.is_valid_GT.values, np.arange(self.longest), 0)
        return HostArray((first_G[:, None] + offset_GT).ravel())

    @cached_property
    def kept(self) -> HostArray:
        """The padded places, flat, that are not padding."""
        return HostArray(np.flatnonzero(self.is_valid_GT.values))

    def mean(self, x_kD: Tensor) -> Tensor:
        """The mean of each row, `(G, D)`, out of the places of the span."""
        shape = (len(self.length_G), self.longest, x_kD.shape[1])
        if self.is_even:
            return x_kD.view(shape).mean(dim=1)
        padded_GTD = x_kD.index_select(0, self.source_GT.on(x_kD.device)).view(shape)
        is_valid_GT, length_G = (one.on(x_kD.device) for one in (self.is_valid_GT, self._lengths))
        return torch.where(is_valid_GT[:, :, None], padded_GTD, 0.0).sum(dim=1) / length_G[:, None]

    @cached_property
    def _lengths(self) -> HostArray:
        return HostArray(self.length_G)

    def band(self, window: int) -> HostArray:
        """Bool `(T, T)`: which places are at most `window` apart."""
        if window not in self._bands:
            place_T = np.arange(self.longest)
            self._bands[window] = HostArray(np.abs(place_T[:, None] - place_T) <= window)
        return self._bands[window]

    def rows_at_once(self, device: torch.device, window: int | None, *, is_causal: bool) -> RowsAtOnce:
        """What `AttentionWithDropout` asks for; all layers of a model share it."""
        asked = (device, window, is_causal)
        if asked not in self._rows:
            source, valid = (None, None) if self.is_even else (self.source_GT.on(device), self.kept.on(device))
            is_allowed = _mask(self, device, window, is_causal=is_causal)
            size = (len(self.length_G), self.longest, self.num_places)
            self._rows[asked] = RowsAtOnce(*size, source, valid, is_allowed, is_causal)
        return self._rows[asked]


class Packing:
    """Where R rows lie that are packed into K places, one after another, longer rows first; each has a place.

    It lives on the host; see `HostArray`.
    """

    def __init__(self, length_R: Ints | Sequence[int]) -> None:
        """`length_R`: the lengths of the rows. ValueError where they rise, or where one is below 1."""
        self.length_R: Ints = np.asarray(length_R, dtype=np.int64)
        if (np.diff(self.length_R) > 0).any() or (self.length_R < 1).any():
            raise ValueError("lengths: longer rows must come first, and each row needs a place")
        self._spans: dict[str, list[Span]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Packing, (self.length_R,)

    @property
    def num_rows(self) -> int:
        """R."""
        return len(self.length_R)

    @property
    def num_places(self) -> int:
        """K."""
        return int(self.length_R.sum())

    @property
    def longest(self) -> int:
        """T."""
        return int(self.length_R.max(initial=0))

    @cached_property
    def first_R(self) -> HostArray:
        """The first place of each row."""
        return HostArray(np.cumsum(self.length_R) - self.length_R)

    @cached_property
    def last_R(self) -> HostArray:
        """The last place of each row."""
        return HostArray(np.cumsum(self.length_R) - 1)

    @cached_property
    def row_K(self) -> Ints:
        """The row of each place."""
        return np.repeat(np.arange(self.num_rows), self.length_R)

    @cached_property
    def place_K(self) -> HostArray:
        """How many places of its row lie before each place."""
        return HostArray(np.arange(self.num_places) - np.repeat(self.first_R.values, self.length_R))

    @cached_property
    def padded_K(self) -> HostArray:
        """Where each place lies, flat, in R rows of T places that are padded on the right."""
        return HostArray(self.row_K * self.longest + self.place_K.values)

    def spans(self, device: torch.device) -> list[Span]:
        """Groups of neighbouring rows with little padding: more of them on a CPU than on a GPU."""
        if device.type not in self._spans:
            pairs = PAIRS_OF_SPAN.get(device.type, PAIRS_OF_SPAN_ELSEWHERE)
            self._spans[device.type] = list(_spans(self.length_R, pairs))
        return self._spans[device.type]

    def padded(self, x_K: Tensor, fill: float = 0) -> Tensor:
        """`(K, ...)` -> `(R, T, ...)`, filled on the right of shorter rows."""
        shape = (self.num_rows, self.longest, *x_K.shape[1:])
        if self.num_rows * self.longest == self.num_places:
            return x_K.view(shape)
        padded = x_K.new_full((self.num_rows * self.longest, *x_K.shape[1:]), fill)
        return padded.index_copy(0, self.padded_K.on(x_K.device), x_K).view(shape)

    def packed(self, x_RT: Tensor) -> Tensor:
        """`(R, T, ...)`, padded on the right -> `(K, ...)`."""
        return x_RT.flatten(0, 1).index_select(0, self.padded_K.on(x_RT.device))

    def first(self, x_K: Tensor) -> Tensor:
        """The first place of each row, `(R, ...)`."""
        return x_K.index_select(0, self.first_R.on(x_K.device))

    def last(self, x_K: Tensor) -> Tensor:
        """The last place of each row, `(R, ...)`."""
        run: Any = _last
        if torch.compiler.is_compiling():  # places differ from batch to batch, as in `attend`
            run = torch.compiler.disable(_last)  # type: ignore[no-untyped-call]  # untyped in torch
        last_R: Tensor = run(x_K, self)
        return last_R

    def mean(self, x_KD: Tensor) -> Tensor:
        """The mean of each row, `(R, D)`."""
        spans = self.spans(x_KD.device)
        rows = zip(spans, torch.split(x_KD, [span.num_places for span in spans]), strict=True)
        return torch.cat([span.mean(x_kD) for span, x_kD in rows])

    def some(self, rows: Ints) -> tuple[Packing, HostArray]:
        """The packing of some rows, whose numbers rise, and their places in this one."""
        length_r = self.length_R[rows]
        chosen = Packing(length_r)
        return chosen, HostArray(np.repeat(self.first_R.values[rows], length_r) + chosen.place_K.values)


def _last(x_K: Tensor, packing: Packing) -> Tensor:
    return x_K.index_select(0, packing.last_R.on(x_K.device))


def packing_of(length_R: Ints) -> tuple[Packing, Ints]:
    """The packing of rows of these lengths, and the order in which they lie in it."""
    order_R = np.argsort(-length_R, kind="stable")
    return Packing(length_R[order_R]), order_R


def lengths_like(lengths: Sequence[int], num_rows: int) -> Ints:
    """Lengths of so many rows, falling, that are distributed as these are."""
    rising = np.sort(np.asarray(lengths, dtype=np.int64))
    return rising[np.arange(num_rows) * len(rising) // num_rows][::-1]


def lengths_of(is_valid_BL: Tensor) -> HostArray:
    """How many places of each row a left-padded mask fills: the host reads it, and waits for its device.

    A mask on the meta device is full. ValueError where one has gaps.
    """
    if is_valid_BL.is_meta:
        return HostArray(np.full(is_valid_BL.shape[0], is_valid_BL.shape[1]))
    is_valid = is_valid_BL.cpu().numpy()
    if (is_valid[:, :-1] & ~is_valid[:, 1:]).any():
        raise ValueError("histories: must be padded on the left, but one has a gap or padding behind it")
    return HostArray(is_valid.sum(axis=1))


def left_padded(length_B: Ints, num_places: int) -> tuple[Packing, HostArray, HostArray, HostArray]:
    """The packing of B rows that stand on the right of `num_places` places, out of their lengths.

    Beside it: where each packed place lies in `(B, num_places)`, flat, how many of its row follow, and where each of
    the B rows lies in the packing. A row without any place has the last one.
    """
    packing, order_R = packing_of(np.maximum(length_B, 1))
    from_end_K = packing.length_R[packing.row_K] - 1 - packing.place_K.values
    place_K = (order_R[packing.row_K] + 1) * num_places - 1 - from_end_K
    return packing, HostArray(place_K), HostArray(from_end_K), HostArray(np.argsort(order_R))


def attend(
    query_KHE: Tensor,
    key_KHE: Tensor,
    value_KHE: Tensor,
    packing: Packing,
    *,
    is_causal: bool = False,
    dropout: float = 0.0,
    window: int | None = None,
    scale: float | None = None,
) -> Tensor:
    """Scaled dot-product attention within each row, `(K, H, E)`.

    `is_causal`: a place sees itself and those before it. `window`: none that is further away than this. `dropout`: of
    attention weights. `scale`: of the products; None: one over the root of E.
    """
    # Spans differ from batch to batch: torch.compile would never come to an end with them.
    run: Any = _attend
    if torch.compiler.is_compiling():
        run = torch.compiler.disable(_attend)  # type: ignore[no-untyped-call]  # untyped in torch
    mixed_KHE: Tensor = run(query_KHE, key_KHE, value_KHE, packing, is_causal, dropout, window, scale)
    return mixed_KHE


def attend_last(
    query_RHE: Tensor, key_KHE: Tensor, value_KHE: Tensor, packing: Packing, *, dropout: float = 0.0
) -> Tensor:
    """Scaled dot-product attention of the last place of each row to its whole row, `(R, H, E)`.

    It is what `attend` gives for these places, causal or not, but for rounding: products of one row may be summed in
    another order than those of several.
    """
    run: Any = _attend_last
    if torch.compiler.is_compiling():
        run = torch.compiler.disable(_attend_last)  # type: ignore[no-untyped-call]  # untyped in torch
    mixed_RHE: Tensor = run(query_RHE, key_KHE, value_KHE, packing, dropout)
    return mixed_RHE


def _attend_last(query_RHE: Tensor, key_KHE: Tensor, value_KHE: Tensor, packing: Packing, dropout: float) -> Tensor:
    spans, device = packing.spans(key_KHE.device), key_KHE.device
    query_GHE = torch.split(query_RHE, [len(span.length_G) for span in spans])
    sizes = [span.num_places for span in spans]
    parts = [
        F.scaled_dot_product_attention(
            query[:, :, None], _heads(key, span), _heads(value, span), _mask(span, device, None), dropout_p=dropout
        )
        for span, query, key, value in zip(
            spans, query_GHE, torch.split(key_KHE, sizes), torch.split(value_KHE, sizes), strict=True
        )
    ]
    return torch.cat([mixed_GH1E[:, :, 0] for mixed_GH1E in parts])


def _attend(
    query_KHE: Tensor,
    key_KHE: Tensor,
    value_KHE: Tensor,
    packing: Packing,
    is_causal: bool,
    dropout: float,
    window: int | None,
    scale: float | None,
) -> Tensor:
    spans, device = packing.spans(query_KHE.device), query_KHE.device
    if dropout and device.type == "cpu":
        factor = query_KHE.shape[-1] ** -0.5 if scale is None else scale
        rows = [span.rows_at_once(device, window, is_causal=is_causal) for span in spans]
        mixed_KHE: Tensor = AttentionWithDropout.apply(query_KHE, key_KHE, value_KHE, rows, dropout, factor)
        return mixed_KHE
    sizes, parts = [span.num_places for span in spans], []
    # Not slices: the gradient of each would be a tensor of all places.
    for span, *of_span in zip(
        spans, *(torch.split(x_KHE, sizes) for x_KHE in (query_KHE, key_KHE, value_KHE)), strict=True
    ):
        query, key, value = (_heads(x_kHE, span) for x_kHE in of_span)
        mask = _mask(span, device, window, is_causal=is_causal)
        mixed_GHTE = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=is_causal and mask is None, scale=scale
        )
        mixed = mixed_GHTE.transpose(1, 2).flatten(0, 1)
        parts.append(mixed if span.is_even else mixed.index_select(0, span.kept.on(mixed.device)))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _heads(x_kHE: Tensor, span: Span) -> Tensor:
    """The places of a span as `(G, H, T, E)`."""
    if not span.is_even:
        x_kHE = x_kHE.index_select(0, span.source_GT.on(x_kHE.device))
    return x_kHE.view(len(span.length_G), span.longest, *x_kHE.shape[1:]).transpose(1, 2)


def _mask(span: Span, device: torch.device, window: int | None, *, is_causal: bool = False) -> Tensor | None:
    """Which keys a query may see, where `is_causal` alone does not say it: padding comes last, so no place sees it."""
    is_banded = window is not None and window < span.longest - 1
    if not is_banded and (span.is_even or is_causal):
        return None
    allowed: Tensor | None = None if span.is_even else span.is_valid_GT.on(device)[:, None, None, :]
    if is_banded and window is not None:
        band_TT = span.band(window).on(device)
        band_TT = band_TT.tril() if is_causal else band_TT
        allowed = band_TT if allowed is None else allowed & band_TT
    return allowed


def _spans(length_R: Ints, pairs_of_span: int) -> Iterator[Span]:
    """The cheapest division of rows into spans, by dynamic programming over the distinct lengths."""
    lengths, counts = np.unique(-length_R, return_counts=True)
    lengths, ends = -lengths, np.concatenate([[0], np.cumsum(counts)])
    best, cut = np.zeros(len(ends)), np.zeros(len(ends), dtype=np.int64)
    for stop in range(1, len(ends)):
        num_rows = ends[stop] - ends[:stop]
        places = num_rows * lengths[:stop]
        is_uneven = np.arange(stop) < stop - 1
        costs = best[:stop] + places * lengths[:stop] + is_uneven * PAIRS_OF_PLACE * places + pairs_of_span
        cut[stop] = costs.argmin()
        best[stop] = costs[cut[stop]]
    stops = [len(lengths)]
    while stops[-1] > 0:
        stops.append(int(cut[stops[-1]]))
    for first, last in zip(stops[:0:-1], stops[-2::-1], strict=True):
        yield Span(length_R[ends[first] : ends[last]])
