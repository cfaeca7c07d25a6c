"""Parts composed: what items are, what users want, and how the two are compared."""
# Shapes: B users, L inputs, N items, D width.

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmmrec.models import ItemEncoder, Scorer
from pmmrec.users import UserEncoder


class Recommender(nn.Module):
    """An item encoder, a user encoder and a scorer."""

    def __init__(self, item_encoder: ItemEncoder, user_encoder: UserEncoder, scorer: Scorer) -> None:
        super().__init__()
        self.item_encoder, self.user_encoder, self.scorer = item_encoder, user_encoder, scorer

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        """The parts that are saved and transferred alone, by their name in a checkpoint; all parameters are in one."""
        parts = {**self.item_encoder.parts, "user_encoder": self.user_encoder}
        if self.scorer.state_dict():
            parts["scorer"] = self.scorer
        return parts

    def user_states(self, vectors_ND: Tensor, item_index_BL: Tensor, is_valid_BL: Tensor) -> Tensor:
        """Hidden states `(B, L, D)` of left-padded histories, given as rows of `vectors_ND`."""
        inputs_BLD = torch.where(is_valid_BL[:, :, None], F.embedding(item_index_BL, vectors_ND), 0.0)
        hidden_BLD: Tensor = self.user_encoder(inputs_BLD, is_valid_BL)
        return hidden_BLD
