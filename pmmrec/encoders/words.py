"""Hide words of texts, and guess them again (masked language modelling, BERT)."""
# Shapes: R texts, T tokens of the longest, K tokens of all, M hidden tokens of all, H width of the backbone,
# E width of its embedding, V rows of that.

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.encoders.backbone import is_dry_run
from pmmrec.encoders.tokenizer import FolderTokenizer
from pmmrec.encoders.weights import is_finite
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.hashed import mixed, uniform
from pmmrec.packing import HostArray, Ints, Packing
from pmmrec.precision import widened

MASKED, RANDOM = 0.8, 0.1  # shares of the hidden tokens that become the mask, and any token; the rest stays (BERT)
# Where folders of transformers keep their head: a linear layer, its LayerNorm, and the bias of the output.
OWN_HEADS: Sequence[tuple[str, str, str]] = (
    ("cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions.bias"),
    ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
    ("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    ("predictions.dense", "predictions.LayerNorm", "predictions.bias"),
    ("generator_predictions.dense", "generator_predictions.LayerNorm", "generator_lm_head.bias"),
)


@dataclass(frozen=True)
class HiddenWords:
    """Texts some of whose tokens were replaced."""

    token_id_K: Tensor
    place_M: Tensor  # int64, where the hidden tokens lie in K, one text after another
    target_M: Tensor  # int64, what stood there
    count_R: Ints  # on the host: how many of each text are hidden, at least one


def refuse_no_mask(architecture: str, mask_id: int | None, *, is_causal: bool) -> None:
    """RecipeError where no word can be hidden from a backbone and guessed from the others."""
    if mask_id is None:
        raise RecipeError(f"{architecture} has no mask token, so no word can be hidden from it; choose one like bert")
    if is_causal:
        raise RecipeError(f"{architecture} guesses a word from the earlier ones alone; choose one like bert")


def hide_words(
    token_id_K: Tensor, packing: Packing, seed_R: Tensor, share: float, tokenizer: FolderTokenizer
) -> HiddenWords:
    """Hide `share` of the words of each text: max(1, round(share x words)) of its tokens that are not special.

    Which ones, and what stands there then, depends on the seed of the text alone. Of a text that has fewer words than
    are to be hidden, special tokens are hidden too.
    """
    num_special, num_ids, mask_id = tokenizer.num_special, tokenizer.num_ids, tokenizer.mask_token_id
    if mask_id is None:
        raise TypeError("no word can be hidden without a mask token")
    num_words_R = np.maximum(packing.length_R - num_special, 0)
    count_R = np.minimum(np.maximum(np.rint(share * num_words_R).astype(np.int64), 1), packing.length_R)
    first_MR, place_MR = np.repeat(packing.first_R.values, count_R), np.repeat(np.arange(len(count_R)), count_R)
    nth_M = np.arange(count_R.sum()) - np.repeat(np.cumsum(count_R) - count_R, count_R)
    device = token_id_K.device

    order_RT = uniform(seed_R, packing.longest)
    is_word_K = torch.ones_like(token_id_K, dtype=torch.bool)
    for special_id in tokenizer.special_ids:
        is_word_K = is_word_K & (token_id_K != special_id)
    # Words first, then special tokens, then what is no token at all.
    rank_RT = order_RT + 1.0 - packing.padded(is_word_K.double())
    is_token_RT = packing.padded(torch.ones_like(token_id_K, dtype=torch.float64))
    chosen_RT = torch.argsort(rank_RT + 2.0 * (1.0 - is_token_RT), dim=1)
    row_M = HostArray(place_MR).on(device)
    within_M = chosen_RT[row_M, HostArray(nth_M).on(device)]
    place_M = HostArray(first_MR).on(device) + within_M

    # Two further numbers a place, of which the first says what is done to it, the second which token comes in.
    what_M = uniform(mixed(seed_R + 1), packing.longest)[row_M, within_M]
    which_M = (uniform(mixed(seed_R + 2), packing.longest)[row_M, within_M] * num_ids).long()
    target_M = token_id_K.index_select(0, place_M)
    changed_M = torch.where(what_M < MASKED + RANDOM, which_M, target_M)
    changed_M = torch.where(what_M < MASKED, mask_id, changed_M)
    return HiddenWords(token_id_K.index_copy(0, place_M, changed_M), place_M, target_M, count_R)


class WordHead(nn.Module):
    """Scores of all tokens at some places: `LayerNorm(act(W h + b))` times the input embedding, plus a bias (BERT)."""

    def __init__(self, width: int, embedding: nn.Embedding, activation: Callable[[Tensor], Tensor], eps: float) -> None:
        super().__init__()
        num_ids, embedding_width = embedding.weight.shape
        self.dense = nn.Linear(width, embedding_width)
        self.norm = nn.LayerNorm(embedding_width, eps=eps)
        self.bias = nn.Parameter(torch.zeros(num_ids))
        nn.init.normal_(self.dense.weight, std=0.02)
        nn.init.zeros_(self.dense.bias)
        self._activation = (activation,)  # no module of ours

    def forward(self, state_MH: Tensor, embedding_VE: Tensor) -> Tensor:
        """States `(M, H)` and the input embedding -> scores `(M, V)`."""
        x_ME = self.norm(self._activation[0](self.dense(state_MH)))
        return F.linear(x_ME, embedding_VE, self.bias.to(x_ME.dtype))

    def load_own(self, folder: Path, settings: Any) -> bool:
        """Take the head of a folder of weights; whether it has one over its own embedding. CheckpointError: broken."""
        if not getattr(settings, "tie_word_embeddings", True):
            return False
        if is_dry_run():
            return True  # nothing is read
        found = {name: path for path in sorted(folder.glob("*.safetensors")) for name in _names(path)}
        for dense, norm, bias in OWN_HEADS:
            names = {
                "dense.weight": f"{dense}.weight",
                "dense.bias": f"{dense}.bias",
                "norm.weight": f"{norm}.weight",
                "norm.bias": f"{norm}.bias",
                "bias": bias if bias in found else f"{bias.removesuffix('.bias')}.decoder.bias",
            }
            if set(names.values()) <= set(found):
                self.load_state_dict({ours: self._read(found[name], ours, name) for ours, name in names.items()})
                return True
        return False

    def _read(self, path: Path, ours: str, name: str) -> Tensor:
        with safe_open(path, framework="pt") as tensors:
            tensor: Tensor = tensors.get_tensor(name)
        wanted = self.state_dict()[ours].shape
        if tensor.shape != wanted:
            raise CheckpointError(f"{path}: tensor {name} has shape {tuple(tensor.shape)}, not {tuple(wanted)}")
        if not is_finite(tensor):
            raise CheckpointError(f"{path}: {name} holds NaN or infinity; take another copy of the weights")
        return tensor.float()


def word_losses(score_MV: Tensor, hidden: HiddenWords) -> Tensor:
    """The mean loss of the hidden tokens of each text, `(R,)`: cross-entropy over the whole vocabulary."""
    loss_M = F.cross_entropy(widened(score_MV), hidden.target_M, reduction="none")
    row_M = HostArray(np.repeat(np.arange(len(hidden.count_R)), hidden.count_R)).on(loss_M.device)
    total_R = loss_M.new_zeros(len(hidden.count_R)).index_add(0, row_M, loss_M)
    return total_R / HostArray(hidden.count_R).on(loss_M.device).to(loss_M.dtype)


def word_head_of(backbone: Any, settings: Any, width: int) -> WordHead:
    """A fresh head for a backbone of transformers, with the activation and epsilon of its configuration."""
    from transformers.activations import ACT2FN

    activation = ACT2FN[getattr(settings, "hidden_act", None) or "gelu"]
    return WordHead(width, backbone.get_input_embeddings(), activation, getattr(settings, "layer_norm_eps", 1e-12))


def _names(path: Path) -> list[str]:
    with safe_open(path, framework="pt") as tensors:
        return list(tensors.keys())
