"""Tiny domains on disk, their splits, and models that read their titles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import nn

from pmmrec.context import BuildContext
from pmmrec.contracts import ItemInputs, ItemVectors, TextSpec
from pmmrec.data.domain import Domain
from pmmrec.data.info import Filters, ImportSummary
from pmmrec.data.items import ItemReader
from pmmrec.data.splits import Split
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.data.write import DomainFolder
from pmmrec.models import ItemEncoder, scorers
from pmmrec.models.recommender import Recommender
from pmmrec.propagations.identity import Identity, IdentityConfig
from pmmrec.rows import laid_out
from pmmrec.users import user_encoders

MakeSplit = Callable[..., Split]


class Letters:
    """A tokenizer of single letters."""

    max_tokens = 40
    pad_token_id = 0
    fingerprint = "letters"

    def encode(self, texts: list[str]) -> list[list[int]]:
        return [[ord(letter) % 100 + 1 for letter in text[: self.max_tokens]] for text in texts]


class MeanOfLetters(ItemEncoder):
    """Encodes an item as the projected mean of the vectors of its letters."""

    reads = {"text": TextSpec(Letters())}

    def __init__(self, width: int) -> None:
        super().__init__()
        self.letter = nn.Embedding(101, width)
        self.out, self.dropout = nn.Linear(width, width), nn.Dropout(0.5)

    @property
    def parts(self) -> dict[str, nn.Module]:
        return {"letter": self.letter, "out": self.out}

    def forward(self, items: ItemInputs) -> ItemVectors:
        text = items.fields["text"]
        letters_RD = text.packing.mean(self.dropout(self.letter(text.token_id_K)))
        return ItemVectors(self.out(laid_out(letters_RD, text.item_index_R, items.num_items)))


@pytest.fixture
def make_recommender() -> Callable[..., Recommender]:
    """A model of letters with a causal Transformer over the last four items, of any width."""

    def make(width: int, **dot_settings: float | str) -> Recommender:
        torch.manual_seed(0)
        config = user_encoders.config({"type": "transformer", "max_inputs": 4})
        user_encoder = user_encoders.part_class(config)(config, BuildContext(width))
        dot = scorers.config({"type": "dot", **dot_settings})
        context = BuildContext(width)
        scorer = scorers.part_class(dot)(dot, context)
        return Recommender(MeanOfLetters(width), user_encoder, scorer, Identity(IdentityConfig(), context))

    return make


@pytest.fixture
def recommender(make_recommender: Callable[..., Recommender]) -> Recommender:
    """A model of letters with a causal Transformer over the last four items."""
    return make_recommender(8)


@pytest.fixture
def make_reader(tmp_path: Path) -> Callable[[Domain], ItemReader]:
    """A reader of the titles of one domain."""
    return lambda domain: ItemReader([domain], MeanOfLetters.reads, tmp_path / "cache")


@pytest.fixture
def make_split(tmp_path: Path) -> MakeSplit:
    """A split of the domain with these sequences: users u0, u1, ... and items i0 .. i(N-1) with titles."""

    def make(sequences: list[list[int]], num_items: int, titles: list[str | None] | None = None) -> Split:
        folder = tmp_path / f"domain-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        writer = DomainFolder(folder)
        item_ids = [f"i{row}" for row in range(num_items)]
        if titles is None:
            titles = [f"{chr(ord('A') + row)} " + "long " * (row % 3) for row in range(num_items)]  # no two alike
        texts = pa.array(titles, pa.large_string())
        writer.write_items(iter([pa.record_batch({"item_id": item_ids, "text": texts})]), [])
        users = pa.array([f"u{user}" for user in range(len(sequences))], pa.large_string())
        rows = pa.record_batch({"user_id": users, "items": pa.array(sequences, pa.large_list(pa.int32()))})
        writer.write_sequences(iter([rows]), has_times=False)
        summary = ImportSummary(
            num_items_read=num_items, num_interactions_read=0, kept={}, rejected={}, num_pictures_ignored=0
        )
        writer.seal("tiny", filters=Filters(k_core=None), image_side=None, time_unit=None, sources={}, summary=summary)
        return leave_one_out(Domain.open(folder))

    return make
