"""Texts of items, and what another network says of their images, through VisualBERT."""
# Shapes: U items, T text tokens, P image tokens, K tokens of both, V width of image tokens, H width of the network.

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from pmmrec.context import BuildContext
from pmmrec.contracts import FieldInputs, TokenStates
from pmmrec.encoders import VISUAL, joint_encoders
from pmmrec.encoders.huggingface import read_config
from pmmrec.encoders.joint_layouts import VISUAL_LAYOUTS
from pmmrec.encoders.joint_network import JointNetwork, JointNetworkConfig, additive
from pmmrec.errors import CheckpointError
from pmmrec.modality import Modality
from pmmrec.packing import HostArray
from pmmrec.rows import all_tokens, joined


class VisualBertConfig(JointNetworkConfig):
    """Settings of VisualBERT."""

    type: Literal["visual_bert"] = "visual_bert"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {
            "architecture": {
                "model_type": "visual_bert",
                "visual_embedding_dim": 6,
                "hidden_size": 8,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "max_position_embeddings": 24,
            },
            "vocab_size": 300,
            "max_tokens": 12,
        },
    )


@joint_encoders.register("visual_bert", VisualBertConfig)
class VisualBert(JointNetwork):
    """Encode the tokens of a text, and vectors of an image's regions or patches, which see one another.

    The joint encoder of MMSR (https://arxiv.org/abs/2403.17372, Tables 6 and 7). The vectors of an image come from the
    item encoder: stored ones of the regions that a detector found, or those of a vision encoder, its cls token first
    where it has one. They are as wide as `visual_embedding_dim` says. An image that an item lacks is seen by no token;
    an item without a text has the empty one, at whose first token the network pools.

    Example:
        model:
          item_encoder:
            type: joint
            encoder: {type: visual_bert, architecture: {model_type: visual_bert, num_hidden_layers: 4}}
            regions: {feature: regions, vectors: 49, length: 2048}
    """

    layouts = VISUAL_LAYOUTS
    fields = frozenset({Modality.TEXT.value})
    reads_visual = True

    def __init__(self, config: VisualBertConfig, context: BuildContext) -> None:
        super().__init__()
        settings = read_config(context.backbone.folder)
        _refuse_bypass(settings, str(context.backbone.folder))
        self._open(config, context, settings, [])
        self.reads = {Modality.TEXT.value: self.text_spec}
        self.visual_width: int = settings.visual_embedding_dim

    @classmethod
    def start(cls, config: VisualBertConfig, folder: Path, texts: Iterable[str]) -> None:  # type: ignore[override]  # its own settings
        """Learn a BPE from `texts`, then write it with the configuration of `architecture` fitted to it."""
        _refuse_bypass(cls._start(config, folder, texts, {}), "architecture")

    @property
    def prefix(self) -> None:
        """None: those of a vision encoder are kept, but a text sees the image in every block here."""

    def whole(self, fields: Mapping[str, FieldInputs | TokenStates], has_U: Mapping[str, Tensor]) -> Tensor:
        """What the network says of U items, pooled and without projection, `(U, H)`."""
        return self.pooled_states(*self.states(fields, has_U))

    def states(
        self, fields: Mapping[str, FieldInputs | TokenStates], has_U: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """The last hidden state, `(U, K, H)`: text, then image; and which of its places are valid."""
        visual = fields.get(VISUAL)
        if not isinstance(visual, TokenStates):
            raise TypeError(
                "items hold no vectors of images, but the model reads them; the item encoder must supply them"
            )
        id_UT, is_valid_UT = self.texts_of_items(fields, len(has_U[Modality.TEXT.value]))
        both = joined(None, all_tokens(visual))
        visual_UPV = both.of_items(both.packing.padded(both.token_KD))
        length_U = np.sum([state.length_R for state in all_tokens(visual)], axis=0)
        is_valid_UP = HostArray(np.arange(both.packing.longest) < length_U[:, None]).on(id_UT.device)
        embedded_UKH = self.backbone.embeddings(input_ids=id_UT, visual_embeds=visual_UPV)
        is_valid_UK = torch.cat([is_valid_UT, is_valid_UP], dim=1)
        mask = additive(is_valid_UK, embedded_UKH.dtype)
        return self.backbone.encoder(embedded_UKH, attention_mask=mask).last_hidden_state, is_valid_UK


def _refuse_bypass(settings: Any, where: str) -> None:
    if getattr(settings, "bypass_transformer", False):
        raise CheckpointError(
            f"{where}: bypass_transformer: true: images would pass one layer alone, which is not read here; choose "
            "weights without it"
        )
