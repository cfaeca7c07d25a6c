"""What texts are compared with: the library's own forward over padded texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pmmrec.contracts import TokenInputs
from pmmrec.encoders.text import HFText
from pmmrec.encoders.text_layouts import LAYOUTS

# Their norms are computed in float32 whatever comes in: as near as that is. Measured 2e-7; gemma2 in float32 4e-6.
ROUNDED = {"gemma": 1e-6, "gemma2": 1e-5, "gemma3_text": 1e-6}
LONG = ["red shoes " * 6, "a", "blue shirt", "blue shirt", "green"]


def token_inputs(encoder: HFText, texts: list[str]) -> TokenInputs:
    return TokenInputs.of(encoder.tokenizer.encode(texts))


def plain_states(encoder: HFText, model: Any, texts: list[str]) -> list[Tensor]:
    """What a model of transformers says of each token of each text, padded to the longest."""
    rows = encoder.tokenizer.encode(texts)
    fills_window = LAYOUTS[encoder.backbone.config.model_type].fills_window
    longest = encoder.backbone.config.max_position_embeddings if fills_window else max(map(len, rows))
    token_id_RT = torch.tensor([row + [encoder.tokenizer.pad_token_id] * (longest - len(row)) for row in rows])
    mask_RT = torch.tensor([[int(place < len(row) or fills_window) for place in range(longest)] for row in rows])
    hidden_RTH = model(input_ids=token_id_RT, attention_mask=mask_RT).last_hidden_state
    return [hidden_TH[: len(row)] for hidden_TH, row in zip(hidden_RTH, rows, strict=True)]


def plain_twin(encoder: HFText, folder: Path) -> Any:
    """The backbone as transformers opens it, with attention of its own."""
    encoder.save_backbone(folder, encoder.backbone.state_dict())
    # In float32 first: buffers that are computed, such as frequencies, are rounded as in the encoder.
    return (
        type(encoder.backbone).from_pretrained(folder, dtype=torch.float32).eval().to(encoder.projection.weight.dtype)
    )


def precise(encoder: HFText) -> HFText:
    """In float64, but for gemma2, whose attention makes NaN of what is masked there."""
    return encoder.eval() if encoder.backbone.config.model_type == "gemma2" else encoder.eval().double()
