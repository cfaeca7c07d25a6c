"""Keys of a transformers configuration that are pinned or refused, since the code here relies on their values."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pmmrec.errors import PMMRecError

# Set to these values. None of them changes a vector.
PINNED: Mapping[str, Any] = {
    "return_dict": True,  # states are read by their names
    "output_attentions": False,  # nothing here reads them
    "output_hidden_states": False,
    "chunk_size_feed_forward": 0,  # chunks give the same numbers, but only for lengths that they divide
    "layerdrop": 0.0,  # a block that is left out gives its parameters no gradient
}
# The values that are accepted, and what is wrong with others.
REFUSED: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "is_decoder": (
        (False,),
        "attention is causal, so that token 0 sees nothing but itself; choose an encoder, or set it to false if it was "
        "trained as one",
    ),
    "add_cross_attention": ((False,), "it needs the states of another model, and there is none; set it to false"),
    "position_embedding_type": (
        ("absolute",),
        "transformers 5 computes absolute positions only and would leave the others out; choose another backbone",
    ),
    "pruned_heads": (({},), "transformers 5 builds every head; choose a backbone that was not pruned"),
    "transformers_weights": ((), "weights are read from model.safetensors; rename the file and remove the key"),
}
# Sizes, of which transformers accepts any number.
ABOVE_ZERO = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "vocab_size", "max_position_embeddings"),
    *("image_size", "patch_size", "num_channels", "window_size", "embed_dim"),
)


def settle(config: Any, where: str, error: type[PMMRecError]) -> None:
    """Pin what is pinned in a configuration; raises `error`, which begins with `where`, for what is refused."""
    for key, (accepted, reason) in REFUSED.items():
        value = getattr(config, key, None)
        if value is not None and value not in accepted:
            raise error(f"{where}: {key}: {json.dumps(value, default=str)}: {reason}")
    for key in ABOVE_ZERO:
        size = getattr(config, key, None)
        if isinstance(size, int) and size < 1:
            raise error(f"{where}: {key}: {size}: must be above 0")
    for key, value in PINNED.items():
        if hasattr(config, key):
            setattr(config, key, value)
