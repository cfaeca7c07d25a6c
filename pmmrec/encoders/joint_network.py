"""What encoders around one network of transformers for texts and images have in common."""
# Shapes: R rows of one field, U items, T text tokens, P image tokens, K tokens of both, H width of the network,
# D width.

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from typing_extensions import Self

from pmmrec.adapters import Host
from pmmrec.context import BuildContext
from pmmrec.contracts import FieldInputs, Prefix, TextSpec, TokenInputs, TokenStates
from pmmrec.encoders import JointEncoder
from pmmrec.encoders.backbone import BackboneConfig, make_head, make_projection
from pmmrec.encoders.huggingface import checkpoint_blocks, new_config, open_model, read_config, read_state, save_model
from pmmrec.encoders.joint_layouts import JointLayout
from pmmrec.encoders.prefix import configuration_of
from pmmrec.encoders.tokenizer import FolderTokenizer, special_token_ids, train_bpe
from pmmrec.encoders.trainable import PartlyTrained, find_layout, matching, pooled_by, train_blocks
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.modality import Modality
from pmmrec.packing import HostArray
from pmmrec.rows import laid_out

JointPool = Literal["cls", "mean", "pooler"]
DEFAULT_VOCAB_SIZE = 8000


class JointNetworkConfig(BackboneConfig):
    """Settings that every encoder around one network of transformers has."""

    vocab_size: int = Field(default=DEFAULT_VOCAB_SIZE, description="Tokens of a fresh network's BPE, at most.")
    max_tokens: int = Field(default=50, ge=3, description="Longer texts are cut; special tokens count.")
    lowercase: bool = Field(default=False, description="Lowercase every text first, as MMSR and NineRec do.")
    pool: JointPool | None = Field(
        default=None,
        description="The whole item: token 0, the mean of all tokens, or what the pooler of the architecture makes of "
        "token 0; null: cls. Of CLIP and GroupViT both projected vectors, one after the other, and nothing else.",
    )

    @model_validator(mode="after")
    def _vocabulary_is_learned(self) -> Self:
        if self.weights is not None and self.vocab_size != DEFAULT_VOCAB_SIZE:
            raise ValueError("vocab_size: has no effect, a pretrained network brings its vocabulary; remove it")
        return self


class JointNetwork(PartlyTrained, JointEncoder):
    """One network of transformers over the texts and images of items; a projection brings items to the width D.

    It gives wholes of items, and no tokens. An item that lacks a field has no token of it that others see, or zeros in
    place of its vector.
    """

    layouts: ClassVar[Mapping[str, JointLayout]]
    refused: ClassVar[Mapping[str, str]] = {}  # architectures that are not read, and why
    gives_tokens = False
    backbone: Any
    _layout: JointLayout

    def _open(self, config: JointNetworkConfig, context: BuildContext, settings: Any, warnings: list[str]) -> None:
        """Build all of it but the way of pixels, from the settings of the network (`settings_in`)."""
        backbone, where = context.backbone, str(context.backbone.folder)
        layout = self._settings_fit(settings, config, where)
        self._pool: str = config.pool or "cls"
        self._layout = pooled_by(layout, self._pool)
        text = half(settings, layout.text_half)
        self._tokenizer = FolderTokenizer(backbone.folder, config.max_tokens, lowercase=config.lowercase)
        self._tokenizer.refuse_more_than(text.vocab_size)
        if self._tokenizer.first_token is None:
            raise CheckpointError(
                f"{where}: its tokenizer puts no special token before a text, but {settings.model_type} needs one; add "
                "`[CLS] $A [SEP]` as post_processor to tokenizer.json"
            )
        if backbone.is_pretrained:
            self._tokenizer.say_differences(warnings.append)
        self._empty_text = self._tokenizer.encode([""])[0]
        self.text_spec = TextSpec(self._tokenizer)
        self.backbone = open_model(
            backbone, settings, self._layout, warnings.append, with_pooler=self._pool == self._layout.pools_by
        )
        self.warnings = tuple(warnings)
        width = 2 * settings.projection_dim if layout.is_two_vectors else _width(settings)
        self.projection = make_projection(width, context.width)
        self.head = make_head(config.head, context.width)
        self.train_top_blocks(self._layout, config.trainable_blocks)

    @classmethod
    def _settings_fit(cls, settings: Any, config: JointNetworkConfig, where: str) -> JointLayout:
        """The layout of a network; RecipeError where it does not suit the settings of the encoder."""
        layout = find_layout(cls.layouts, settings.model_type, where, cls.refused)
        if layout.is_two_vectors and config.pool is not None:
            raise RecipeError(
                f"pool: {config.pool}: has no effect, {settings.model_type} gives a vector of the text and one of the "
                "image, which are joined; leave it out"
            )
        longest = half(settings, layout.text_half).max_position_embeddings
        if config.max_tokens > longest:
            raise RecipeError(
                f"max_tokens: {config.max_tokens} asked for, but {where} has positions for {longest}; say "
                f"max_tokens: {longest}, which cuts longer texts"
            )
        return layout

    @classmethod
    def _start(cls, config: JointNetworkConfig, folder: Path, texts: Iterable[str], of_image: Mapping[str, Any]) -> Any:
        """Learn a BPE from `texts`, write it with the configuration of `architecture` fitted to it, and give that.

        `of_image`: what is fitted to other settings in the configuration of its images.
        """
        if config.architecture is None:
            raise RecipeError("weights: a pretrained network is opened, not started; give `architecture` instead")
        name = str(config.architecture.get("model_type"))
        layout = find_layout(cls.layouts, name, "architecture.model_type", cls.refused)

        def configured(vocab_size: int) -> Any:
            fitted: dict[str, Any] = {}
            of_text = {"vocab_size": vocab_size, **special_token_ids()}
            for key, values in ((layout.text_half, of_text), (layout.image_half, of_image)):
                fitted |= {key: values} if key else values
            return new_config(config.architecture or {}, **fitted)

        trial = configured(config.vocab_size)
        cls._settings_fit(trial, config, "architecture")
        train_bpe(texts, config.vocab_size, folder, lowercase=config.lowercase)
        trial.save_pretrained(folder)  # decides the class of the tokenizer, which may add tokens of its own
        num_ids = FolderTokenizer(folder, config.max_tokens, lowercase=config.lowercase).num_ids
        settings = configured(num_ids)
        settings.save_pretrained(folder)
        return settings

    def forward(self, fields: Mapping[str, FieldInputs | TokenStates], has_U: Mapping[str, Tensor]) -> TokenStates:
        """Rows of each field, and which of U items have it -> the wholes of U items."""
        whole_UD = self.projection(self.whole(fields, has_U))
        if self.head is not None:
            whole_UD = self.head(whole_UD)
        is_readable_U1 = torch.stack(list(has_U.values())).any(dim=0)[:, None]
        return TokenStates.of_wholes(torch.where(is_readable_U1, whole_UD, 0.0))

    @abstractmethod
    def whole(self, fields: Mapping[str, FieldInputs | TokenStates], has_U: Mapping[str, Tensor]) -> Tensor:
        """What the network says of U items, pooled and without projection, `(U, H)`."""

    def texts_of_items(self, fields: Mapping[str, FieldInputs | TokenStates], num_items: int) -> tuple[Tensor, Tensor]:
        """Token ids of U items `(U, T)`, padded on the right, and which places hold a token `(U, T)`.

        An item without a text has the tokens of the empty text: networks pool at its first one.
        """
        rows = text_rows(fields)
        longest = max(rows.packing.longest, len(self._empty_text))
        is_of_item_R = rows.item_index_R.values < num_items
        length_U = np.full(num_items, len(self._empty_text))
        has_text_U = np.zeros(num_items, dtype=np.bool_)
        length_U[rows.item_index_R.values[is_of_item_R]] = rows.packing.length_R[is_of_item_R]
        has_text_U[rows.item_index_R.values[is_of_item_R]] = True
        padding = self._tokenizer.pad_token_id
        empty_T = np.full(longest, padding)
        empty_T[: len(self._empty_text)] = self._empty_text
        id_RT = rows.packing.padded(rows.token_id_K, fill=padding)
        id_RT = nn.functional.pad(id_RT, (0, longest - id_RT.shape[1]), value=padding)
        device = id_RT.device
        id_UT = laid_out(id_RT, rows.item_index_R, num_items)
        id_UT = torch.where(HostArray(has_text_U[:, None]).on(device), id_UT, HostArray(empty_T).on(device))
        return id_UT, HostArray(np.arange(longest) < length_U[:, None]).on(device)

    def pooled_states(self, state_UKH: Tensor, is_valid_UK: Tensor) -> Tensor:
        """The whole of each item, `(U, H)`, out of the states of its tokens."""
        if self._pool == "mean":
            shown_UKH = torch.where(is_valid_UK[:, :, None], state_UKH, 0.0)
            return shown_UKH.sum(dim=1) / is_valid_UK.sum(dim=1, keepdim=True)
        if self._pool == "cls":
            return state_UKH[:, 0]
        (name,) = matching(self.backbone, self._layout.pooler)
        whole_UH: Tensor = self.backbone.get_submodule(name)(state_UKH)
        return whole_UH

    @property
    def prefix(self) -> Prefix | None:
        """None where all of it trains. RecipeError otherwise: what is kept of an item is kept for one field."""
        if self._trained == ("",):
            return None
        raise RecipeError(
            f"prefix_cache: states of {type(self.backbone).__name__} are not kept, since it reads texts and images at "
            "once; leave the cache off"
        )

    @property
    def host(self) -> Host:
        """The blocks of the network; those of encoders beside one another alternate, the top ones last."""
        stacks = [matching(self.backbone, pattern) for pattern in self._layout.stacks]
        beside = [name for level in zip_longest(*map(reversed, stacks)) for name in level if name is not None]
        above = [name for name in matching(self.backbone, self._layout.blocks) if name not in beside]
        return Host(
            module=self.backbone,
            path="backbone",
            architecture=type(self.backbone).__name__,
            blocks=(*reversed(beside), *above),
            sites=self._layout.sites,
            known=tuple(sorted(self.layouts)),
            learns_from_top=self._train_highest,
        )

    def _train_highest(self, num_blocks: int) -> None:
        blocks = self.host.blocks
        self._trained = train_blocks(self.backbone, self._layout, blocks[len(blocks) - num_blocks :])
        self.train(self.training)

    @property
    def backbone_facts(self) -> Mapping[str, Any]:
        """What decides the states of the network beside its tensors and inputs."""
        kind, configuration = type(self.backbone).__name__, configuration_of(self.backbone)
        return {"class": kind, "configuration": configuration, **self.preprocessing}

    @property
    def preprocessing(self) -> Mapping[str, Any]:
        """Settings of what is done to pixels before the network; texts come as token ids."""
        return {}

    def checkpoint_activations(self) -> None:
        """Of the blocks that learn: those in training mode."""
        checkpoint_blocks(self.backbone)

    def save_backbone(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what `AutoModel` and `AutoTokenizer` read."""
        save_model(self.backbone, folder, state)
        self._tokenizer.save(folder)

    def read_backbone(self, folder: Path) -> dict[str, Tensor]:
        """The tensors that `save_backbone` wrote, by the same names."""
        return read_state(folder, read_config(folder), self._layout, self.backbone)


def half(settings: Any, key: str) -> Any:
    """The configuration of one half of a network, or that of the whole."""
    return getattr(settings, key) if key else settings


def text_rows(fields: Mapping[str, FieldInputs | TokenStates]) -> TokenInputs:
    """The token ids of the items."""
    rows = fields.get(Modality.TEXT.value)
    if not isinstance(rows, TokenInputs):
        raise TypeError("items hold no text, but the model reads it; the batch builder must supply it")
    return rows


def additive(is_valid_UK: Tensor, dtype: torch.dtype) -> Tensor:
    """`(U, 1, 1, K)`, what is added to scores of attention: 0, or -inf for keys that nobody sees."""
    zero = torch.zeros((), dtype=dtype, device=is_valid_UK.device)
    return torch.where(is_valid_UK, zero, -torch.inf)[:, None, None]


def _width(settings: Any) -> int:
    """Of the last hidden state."""
    width: int = getattr(settings, "multimodal_config", settings).hidden_size
    return width
