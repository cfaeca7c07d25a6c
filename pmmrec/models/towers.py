"""Items by their texts and images: a text encoder, a vision encoder, or both, and a fusion."""
# Shapes: R rows given to one encoder, U distinct items, D width.

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.context import BuildContext
from pmmrec.contracts import (
    FieldInputs,
    FieldSpec,
    ItemInputs,
    ItemVectors,
    Modality,
    PixelInputs,
    PrefixInputs,
    PrefixSlots,
    TextSpec,
    TokenInputs,
    TokenStates,
)
from pmmrec.encoders import Encoder, EncoderConfig, TextEncoder, VisionEncoder, text_encoders, vision_encoders
from pmmrec.fusion import Fusion, fusions
from pmmrec.hashed import item_seeds
from pmmrec.models import ItemEncoder, ItemEncoderConfig, item_encoders
from pmmrec.models.mask_text import mask_alone, with_mask
from pmmrec.models.pairs import TokenRoom, as_stream, of_pairs
from pmmrec.requests import Hiding, View
from pmmrec.rows import laid_out, place_rows
from pmmrec.settings import PartConfig

if TYPE_CHECKING:
    TextField: TypeAlias = EncoderConfig
    VisionField: TypeAlias = EncoderConfig
    FusionField: TypeAlias = PartConfig
else:
    TextField, VisionField, FusionField = text_encoders.field, vision_encoders.field, fusions.field


_SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
_TINY_TEXT = {
    "type": "hf_text",
    "architecture": {"model_type": "bert", "max_position_embeddings": 24, **_SIZES},
    "vocab_size": 300,
    "max_tokens": 12,
}
_TINY_VISION = {"type": "hf_vision", "architecture": {"model_type": "vit", "image_size": 16, "patch_size": 8, **_SIZES}}


class TowersConfig(ItemEncoderConfig):
    """Settings of an item encoder with one tower for each modality."""

    type: Literal["towers"] = "towers"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (
        {"text": _TINY_TEXT},
        {"text": _TINY_TEXT, "vision": _TINY_VISION, "fusion": {"type": "merge_attention", "num_heads": 2}},
        {
            "text": _TINY_TEXT,
            "text_fields": ["text", "description"],
            "fusion": {"type": "merge_attention", "num_heads": 2},
        },
    )
    text: TextField | None = Field(default=None, description="How texts are encoded; None: not read.")
    text_fields: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        default=(Modality.TEXT.value,),
        min_length=1,
        description="Texts that the text encoder reads, each alone: `text`, and further columns of the items by name.",
    )
    vision: VisionField | None = Field(default=None, description="How images are encoded; None: not read.")
    fusion: FusionField | None = Field(default=None, description="How several fields become one vector.")
    normalize: Literal["none", "layer_norm"] = Field(
        default="none",
        description="layer_norm: item vectors get mean 0 and variance 1 (no parameters); none: as in the paper.",
    )

    @model_validator(mode="after")
    def _fusion_is_for_several(self) -> Self:
        if self.text is None and self.vision is None:
            raise ValueError("give `text`, `vision` or both; an item encoder must read something")
        if self.text is None and self.text_fields != (Modality.TEXT.value,):
            raise ValueError("text_fields: has no effect without `text`; remove it")
        if Modality.IMAGE.value in self.text_fields or len(set(self.text_fields)) < len(self.text_fields):
            raise ValueError("text_fields: name each text once; images are read by `vision`")
        read = [*(self.text_fields if self.text is not None else ()), *(["vision"] if self.vision is not None else [])]
        if len(read) > 1 and self.fusion is None:
            raise ValueError(f"fusion: {' and '.join(read)} are read; say how they become one vector")
        if self.fusion is not None and len(read) > 1:
            num_fields = fusions.part_class(self.fusion).num_fields
            if num_fields not in (None, len(read)):
                raise ValueError(
                    f"fusion: {self.fusion.type} joins {num_fields} fields, but {' and '.join(read)} are read; choose "
                    "merge_attention, or read fewer"
                )
        if len(read) == 1 and self.fusion is not None:
            raise ValueError("fusion: has no effect, only one field is read; remove it")
        return self

    @property
    def encoders(self) -> Mapping[str, EncoderConfig]:
        named = {"text_encoder": self.text, "vision_encoder": self.vision}
        return {name: config for name, config in named.items() if config is not None}

    @property
    def fields(self) -> frozenset[str]:
        images = () if self.vision is None else (Modality.IMAGE.value,)
        return frozenset([*self.texts, *images])

    @property
    def reads_mask_text(self) -> bool:
        return self.text is not None and len(self.fields) == 1

    @property
    def texts(self) -> tuple[str, ...]:
        return () if self.text is None else self.text_fields

    def keeping(self, parts: Collection[str]) -> Self:
        """With the named towers alone; a fusion is for several fields. ValueError where no tower is left."""
        left = {**dict(self), "text": self.text if "text_encoder" in parts else None}
        left["vision"] = self.vision if "vision_encoder" in parts else None
        if left["text"] is None:
            left.pop("text_fields")
        num_fields = (left["vision"] is not None) + len(left.get("text_fields", ()))
        return self.model_validate({**left, "fusion": self.fusion if num_fields > 1 else None})


_PAIR = frozenset(modality.value for modality in Modality)
_READ_BY = {View.WORDS: Modality.TEXT.value, View.PATCHES: Modality.IMAGE.value}
_SALTS = {View.WORDS: 1, View.PATCHES: 2}


@item_encoders.register("towers", TowersConfig)
class Towers(ItemEncoder):
    """A text encoder, a vision encoder, or both and a fusion, make the vector `(D,)` of an item.

    Of several fields, the item is the fusion of their tokens (eq. 1-3 of https://arxiv.org/abs/2312.09602), else the
    cls vector of its one encoder. The text encoder may read several texts, such as a title and a description, each
    alone. Differs from the paper: items may lack a modality, and `normalize: layer_norm` is ours. An item
    that lacks a modality has zeros and no tokens there; one that lacks all of them is the zero vector.
    Rows that stand in for a batch without a modality pass their encoder, with a gradient of exactly 0: every process
    uses every parameter.

    A second text, the column `description` of the items, is read too with `text_fields: [text, description]` and a
    `fusion`.

    Example:
        model:
          item_encoder:
            type: towers
            text: {type: hf_text, architecture: {model_type: bert, num_hidden_layers: 2}}
            normalize: layer_norm
    """

    def __init__(self, config: TowersConfig, context: BuildContext) -> None:
        super().__init__()
        self._text_fields = config.text_fields
        self._is_normalized = config.normalize == "layer_norm"
        self._mask_at_cut: ItemInputs | None = None
        self._width = context.width
        self._restored: dict[str, tuple[Hiding, nn.Module]] = {}  # heads of objectives, by the stream of their loss
        self._rooms: dict[str, TokenRoom] = {}  # as the last items that were encoded needed it
        self.text_encoder: TextEncoder | None = None
        self.vision_encoder: VisionEncoder | None = None
        self.fusion: Fusion | None = None
        if config.text is not None:
            text_class: Any = text_encoders.part_class(config.text)
            self.text_encoder = text_class(config.text, context.at("text_encoder"))
        if config.vision is not None:
            vision_class: Any = vision_encoders.part_class(config.vision)
            self.vision_encoder = vision_class(config.vision, context.at("vision_encoder"))
        if config.fusion is not None:
            fusion_class: Any = fusions.part_class(config.fusion)
            self.fusion = fusion_class(config.fusion, context)
        for encoder in self.encoders.values():
            encoder.gives_tokens = self.fusion is not None and self.fusion.reads_tokens

    @property
    def parts(self) -> Mapping[str, nn.Module]:
        return dict(self.named_children())

    @property
    def cls_fields(self) -> frozenset[str]:
        return self.fields

    @property
    def training_streams(self) -> Mapping[str, int]:
        streams = dict.fromkeys(self._restored, 1)
        if self.fusion is not None and self.fields == _PAIR:
            widths = [room.width(self._width) for room in self._rooms.values()]
            streams[View.TOKENS.value] = sum(widths) or 1  # known once items have been encoded
        return streams

    @property
    def encoders(self) -> Mapping[str, Encoder]:
        towers = {**dict.fromkeys(self._text_fields, self.text_encoder), Modality.IMAGE.value: self.vision_encoder}
        return {field: encoder for field, encoder in towers.items() if encoder is not None}

    @property
    def reads(self) -> Mapping[str, FieldSpec]:
        specs: dict[str, FieldSpec] = {}
        if self.text_encoder is not None:
            specs.update(dict.fromkeys(self._text_fields, TextSpec(self.text_encoder.tokenizer)))
        if self.vision_encoder is not None:
            specs[Modality.IMAGE.value] = self.vision_encoder.pixel_spec
        return specs

    def keep_states(self) -> None:
        mask = self._mask
        self._mask_at_cut = None if mask is None else self._at_cut(mask)

    def mask_vector(self) -> Tensor | None:
        mask = self._mask
        return None if mask is None else self._vectors(mask).fused_UD[0]

    def restore(self, hiding: Hiding) -> nn.Module:
        encoder: TextEncoder | VisionEncoder
        head: nn.Module
        if hiding.view is View.WORDS and self.text_encoder is not None:
            encoder, head = self.text_encoder, self.text_encoder.word_head()
        elif hiding.view is View.PATCHES and self.vision_encoder is not None:
            encoder, head = self.vision_encoder, self.vision_encoder.patch_head(hiding.share)
        else:
            return super().restore(hiding)
        encoder.is_restored = True
        self._restored[hiding.view.value] = hiding, head
        return head

    def restoring(self) -> Sequence[nn.Module]:
        hidden_from = {View.WORDS.value: self.text_encoder, View.PATCHES.value: self.vision_encoder}
        return [encoder for view, encoder in hidden_from.items() if view in self._restored and encoder is not None]

    def fused_pairs(self, items: ItemVectors, text_P: Tensor, image_P: Tensor) -> Tensor:
        if self.fusion is None:
            raise TypeError("nothing fuses a text with an image")
        index = {Modality.TEXT.value: text_P, Modality.IMAGE.value: image_P}
        return self._fused(of_pairs(items, self._rooms, View.TOKENS.value, index), self.fusion)

    def _tokens(self, items: ItemInputs, states: Mapping[str, TokenStates]) -> Tensor:
        """All that the fusion reads of U items, `(U, W)`; the same W in every process, whatever its items have."""
        for field, state in states.items():
            num_rows = len(items.fields[field].item_index_R)
            num_tokens = len(state.token_KD) // num_rows  # of images, which are alike
            if field != Modality.IMAGE and num_tokens and self.text_encoder is not None:
                num_tokens = self.text_encoder.tokenizer.max_tokens
            self._rooms[field] = TokenRoom(num_tokens, state.first_RD is not None)
        return torch.cat([as_stream(states[field], room) for field, room in self._rooms.items()], dim=1)

    def forward(self, items: ItemInputs) -> ItemVectors:
        """Vectors of U distinct items, each encoded once."""
        if not self.gives_vectors:
            return self._losses_alone(items)
        mask = self._mask if self.training else None
        if mask is None:
            return self._vectors(items)
        if any(isinstance(rows, PrefixInputs) for rows in items.fields.values()):
            mask = self._mask_at_cut or self._at_cut(mask)
        both = self._vectors(with_mask(items, mask))
        cls_UD = {field: cls_UD[:-1] for field, cls_UD in both.cls_UD.items()}
        streams_UD = {name: stream_UD[:-1] for name, stream_UD in both.streams_UD.items()}
        return ItemVectors(both.fused_UD[:-1], cls_UD, items.has_U, streams_UD, both.fused_UD[-1])

    @property
    def _mask(self) -> ItemInputs | None:
        """The text of the mask as an item."""
        if self.mask_text is None or self.text_encoder is None:
            return None
        return mask_alone(self.text_encoder, self._text_fields[0], self.mask_text)

    def _at_cut(self, mask: ItemInputs) -> ItemInputs:
        """The mask by what the frozen part of the text encoder says of it."""
        encoder, ((field, rows),) = self.text_encoder, mask.fields.items()
        if encoder is None or encoder.prefix is None or not isinstance(rows, TokenInputs):
            raise TypeError("items come as kept states, but the text encoder has no frozen part")
        return replace(mask, fields={field: encoder.prefix.at_cut(rows)})

    def _vectors(self, items: ItemInputs) -> ItemVectors:
        states = self._encode(items)
        cls_UD = {field: state.cls_RD for field, state in states.items()}
        if self.fusion is None:
            (fused_UD,) = cls_UD.values()
            if self._is_normalized:
                fused_UD = F.layer_norm(fused_UD, fused_UD.shape[-1:])  # the zero vector stays what it is
        else:
            fused_UD = self._fused(states, self.fusion)
            # Views, so that a gradient at them is not that of a fusion which reads them too.
            cls_UD = {field: cls.view_as(cls) for field, cls in cls_UD.items()}
        has_U = {field: items.has_U[field] for field in states}
        is_readable_U1 = torch.stack(list(has_U.values()), dim=1).any(dim=1, keepdim=True)
        streams_UD = self._losses(items)
        if View.TOKENS.value in self.asked:
            streams_UD[View.TOKENS.value] = self._tokens(items, states)
        return ItemVectors(torch.where(is_readable_U1, fused_UD, 0.0), cls_UD, has_U, streams_UD)

    def _fused(self, states: Mapping[str, TokenStates], fusion: Fusion) -> Tensor:
        fused_UD: Tensor = fusion(states)
        return F.layer_norm(fused_UD, fused_UD.shape[-1:]) if self._is_normalized else fused_UD

    def _losses_alone(self, items: ItemInputs) -> ItemVectors:
        """Zeros for the vectors of items, and the losses of what was hidden of them."""
        streams_UD = self._losses(items)
        like = next(iter(streams_UD.values()), None)
        zeros_UD = torch.zeros(items.num_items, self._width, device=items.row_U.device)
        zeros_UD = zeros_UD if like is None else zeros_UD.to(like.dtype)
        has_U = {field: items.has_U[field] for field in self.fields}
        return ItemVectors(zeros_UD, dict.fromkeys(self.fields, zeros_UD), has_U, streams_UD)

    def _losses(self, items: ItemInputs) -> dict[str, Tensor]:
        """For each item the loss of what was hidden of it, `(U, 1)`; 0 where it lacks the field."""
        if items.draw is None:
            return {}
        return {name: self._loss(items, hiding, head) for name, (hiding, head) in self._restored.items()}

    def _loss(self, items: ItemInputs, hiding: Hiding, head: nn.Module) -> Tensor:
        field = _READ_BY[hiding.view]
        rows = _rows_of(items, field)
        seed_U = F.pad(item_seeds(items, salt=_SALTS[hiding.view]), (0, 1))  # of a row that stands in: anything
        seed_R = seed_U.index_select(0, rows.item_index_R.on(seed_U.device))
        if isinstance(rows, TokenInputs) and self.text_encoder is not None:
            loss_R = self.text_encoder.word_loss(rows, seed_R, head, hiding.share)
        elif isinstance(rows, PixelInputs) and self.vision_encoder is not None:
            loss_R = self.vision_encoder.patch_loss(rows, seed_R, head, hiding.share, normalize=hiding.normalize)
        else:
            raise TypeError(f"items hold {type(rows).__name__} of {field}, of which nothing can be hidden")
        return laid_out(loss_R[:, None], rows.item_index_R, items.num_items)

    def _encode(self, items: ItemInputs) -> dict[str, TokenStates]:
        return {
            field: place_rows(encoder(_rows_of(items, field)), items.fields[field].item_index_R, items.num_items)
            for field, encoder in self.encoders.items()
        }


def _rows_of(items: ItemInputs, field: str) -> FieldInputs:
    rows = items.fields.get(field)
    if rows is None or isinstance(rows, PrefixSlots):
        raise ValueError(f"items hold no {field}, but the model reads it; the batch builder must supply it")
    return rows
