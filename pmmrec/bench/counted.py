"""The work of parts that no formula describes, by torch's counter on the meta device, where nothing is computed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pmmrec.bench.flops import Work
from pmmrec.contracts import FieldInputs, History, ItemInputs, Modality, TokenStates, to_device
from pmmrec.models.recommender import Recommender
from pmmrec.train.meta_items import item_inputs


class MetaCounter:
    """Counts the work of one item, text or history of a model; equal ones are counted once."""

    def __init__(self, recommender: Recommender, width: int) -> None:
        self._original, self._width = recommender, width
        self._counted: dict[Any, Work] = {}

    def items(self, items: ItemInputs) -> Work:
        """A whole item encoder on items such as these."""
        return self._once(
            ("items", items.num_items), lambda: self._model.item_encoder(to_device(items, "meta")).fused_UD
        )

    def row(self, field: str, num_tokens: int, *, is_kept: bool) -> Work:
        """The encoder of a field on one item, whose text has so many tokens."""

        rows = self._rows(field, num_tokens, is_kept=is_kept)  # not counted: kept states are there already

        def states() -> Tensor:
            found = self._states(field, rows)
            return found.token_KD.sum() + found.cls_RD.sum()

        return self._once((field, num_tokens, is_kept), states)

    def history(self, length: int, *, last_alone: bool) -> Work:
        """The user encoder on one history; `last_alone`: for its last state."""

        def states() -> Tensor:
            encoder = self._model.user_encoder
            item_BLD = torch.zeros(1, length, self._width, device="meta", requires_grad=True)
            is_valid_BL = torch.ones(1, length, dtype=torch.bool, device="meta")
            streams = dict.fromkeys(encoder.streams, item_BLD)
            user_index_B = torch.zeros(1, dtype=torch.int64, device="meta")
            history = History(item_BLD, is_valid_BL, streams, user_index_B=user_index_B, last_alone=last_alone)
            found: Tensor = encoder(history).hidden_BLD
            return found

        return self._once(("history", length, last_alone), states)

    @cached_property
    def image_tokens(self) -> int:
        """Tokens of an image that a fusion sees; 1 where only the whole is read."""
        field = Modality.IMAGE.value
        return max(1, int(self._states(field, self._rows(field, 1, is_kept=False)).length_R[0]))

    @cached_property
    def _model(self) -> Recommender:
        return copy.deepcopy(self._original).to("meta").train()

    def _rows(self, field: str, num_tokens: int, *, is_kept: bool) -> FieldInputs:
        """The inputs of one item."""
        kept = frozenset([field] if is_kept else ())
        return item_inputs(self._model, 1, (num_tokens,), kept).fields[field]

    def _states(self, field: str, rows: FieldInputs) -> TokenStates:
        found: TokenStates = self._model.item_encoder.encoders[field](rows)
        return found

    def _once(self, key: Any, compute: Callable[[], Tensor]) -> Work:
        if key not in self._counted:
            self._counted[key] = counted(compute)
        return self._counted[key]


def counted(compute: Callable[[], Tensor]) -> Work:
    """Forward and backward of what `compute` gives, by torch's counter."""
    with FlopCounterMode(display=False) as forward:
        out = compute()
    with FlopCounterMode(display=False) as backward:
        if out.requires_grad:
            out.sum().backward()  # type: ignore[no-untyped-call]  # untyped in torch
    return Work(float(forward.get_total_flops()), float(backward.get_total_flops()))
