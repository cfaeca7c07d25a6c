"""Text through an encoder of transformers (bert, roberta, xlm-roberta, ...)."""
# Shapes: R rows, T tokens of the longest, K tokens of all, D width.

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from pmmrec.context import Backbone, BuildContext
from pmmrec.contracts import FieldInputs, PixelInputs, PrefixInputs, TokenInputs, TokenStates
from pmmrec.encoders import TextEncoder, text_encoders
from pmmrec.encoders.backbone import BackboneConfig, make_head, make_projection, through_head
from pmmrec.encoders.huggingface import checkpoint_blocks, new_config, open_model, read_config, read_state, save_model
from pmmrec.encoders.packed_attention import read_packed_texts
from pmmrec.encoders.prefix import CanBeCut, fingerprint_of
from pmmrec.encoders.sentence import Pool, SentenceSettings, write_sentence_settings
from pmmrec.encoders.sentence_head import read_sentence_head, width_of, write_sentence_head
from pmmrec.encoders.text_layouts import HALVES, LAYOUTS, REFUSED, TextLayout, sees_earlier_alone
from pmmrec.encoders.tokenizer import FolderTokenizer, special_token_ids, train_bpe
from pmmrec.encoders.trainable import find_layout, pooled_by, pools_of
from pmmrec.encoders.words import WordHead, hide_words, refuse_no_mask, word_head_of, word_losses
from pmmrec.errors import CheckpointError, RecipeError
from pmmrec.packing import HostArray, Packing

DEFAULT_VOCAB_SIZE = 8000


_TINY: Mapping[str, Any] = {
    "architecture": {
        "model_type": "bert",
        "max_position_embeddings": 24,
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
    "vocab_size": 300,
    "max_tokens": 12,
}


class HFTextConfig(BackboneConfig):
    """Settings of a text encoder of transformers."""

    type: Literal["hf_text"] = "hf_text"
    examples: ClassVar[Sequence[Mapping[str, Any]]] = (_TINY, {**_TINY, "head": {"layers": 1}})
    vocab_size: int = Field(default=DEFAULT_VOCAB_SIZE, description="Tokens of a fresh backbone's BPE, at most.")
    max_tokens: int = Field(default=50, ge=2, description="Longer texts are cut; special tokens count.")
    lowercase: bool | None = Field(
        default=None,
        description="Lowercase every text first (the released code does); null: as the folder says, else no.",
    )
    pool: Pool | None = Field(
        default=None,
        description="The whole text: token 0, the mean or the greatest of all, the last, or what the pooler of the "
        "architecture makes of token 0; null: as the folder says, else cls.",
    )
    prefix: str = Field(default="", description="Stands before each text, as `passage: ` of E5.")
    sentence_modules: bool = Field(
        default=False,
        description="Put the Dense and Normalize of a sentence-transformers folder above the pooling; the model may "
        "read no tokens then.",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_fresh_backbone_has_no_folder_that_says(cls, tree: Any) -> Any:
        if not isinstance(tree, Mapping) or tree.get("architecture") is None:
            return tree
        said = {key: value for key, value in tree.items() if value is not None}
        return {"lowercase": False, "pool": "cls", **said}

    @model_validator(mode="after")
    def _vocabulary_is_learned(self) -> Self:
        if self.weights is not None and self.vocab_size != DEFAULT_VOCAB_SIZE:
            raise ValueError("vocab_size: has no effect, a pretrained backbone brings its vocabulary; remove it")
        return self


@text_encoders.register("hf_text", HFTextConfig)
class HFText(CanBeCut, TextEncoder):
    """Encode texts with a model of transformers; a projection brings each token to the common width D.

    Eq. 1 of https://arxiv.org/abs/2312.09602, whose released code trains the two top blocks of XLM-R. `pmmrec encoders`
    lists the architectures. Of T5, CLIP and SigLIP the encoder of texts is read. A pooler is left out unless it pools.
    The tokens are all but token 0, whichever way the whole is pooled; a `head` works on each token and on the pooled
    whole. `weights` names a pretrained backbone. Most architectures read texts without padding, one after another;
    the others read them padded to the longest, and SigLIP padded to all positions without a mask, as it was trained.

    Example:
        model:
          item_encoder:
            type: towers
            text: {type: hf_text, architecture: {model_type: bert, num_hidden_layers: 2}, max_tokens: 50}
    """

    layouts = LAYOUTS
    _layout: TextLayout

    def __init__(self, config: HFTextConfig, context: BuildContext) -> None:
        super().__init__()
        self._origin = backbone = context.backbone
        self._settings = read_config(backbone.folder, HALVES)
        warnings: list[str] = []
        said, self._pool, lowercase = _settled(config, backbone, warnings.append)
        self._layout = _check(self._settings, config, self._pool, where=str(backbone.folder))
        self._layout = pooled_by(self._layout, self._pool)
        self._tokenizer = FolderTokenizer(backbone.folder, config.max_tokens, lowercase=lowercase, prefix=config.prefix)
        self.tokenizer = self._tokenizer
        if backbone.is_pretrained:
            self._tokenizer.say_differences(warnings.append)
            if self._layout.fills_window:
                warnings.append(
                    f"{backbone.folder}: its texts were pooled at the last of all positions, padding too, under a "
                    f"head; here the head is left out, and pool: {self._pool} reads no padding"
                )
        _check_tokens(self._tokenizer, self._settings, self._layout, self._pool, backbone.folder, warnings.append)
        self.backbone = open_model(
            backbone, self._settings, self._layout, warnings.append, with_pooler=self._pool == "pooler"
        )
        # It looks for padding among the numbers of a tensor: the host would wait for a GPU, and fails when dry.
        self.backbone.warn_if_padding_and_no_attention_mask = _say_nothing
        if self._layout.packs:
            read_packed_texts(self.backbone)
        self.compute_cheaply()
        self.warnings = tuple(warnings)
        width: int = getattr(self._settings, self._layout.width_name)
        self.sentence = _sentence_head(config, backbone, said, width)
        self.projection = make_projection(width_of(self.sentence, width), context.width)
        self.head = make_head(config.head, context.width)
        self.train_top_blocks(self._layout, config.trainable_blocks)
        if self.sentence is not None and config.trainable_blocks == 0:
            self.sentence.requires_grad_(False)

    @classmethod
    def start(cls, config: HFTextConfig, folder: Path, texts: Iterable[str]) -> None:  # type: ignore[override]  # its own settings
        """Learn a BPE from `texts`, then write it with the configuration of `architecture` fitted to it."""
        if config.architecture is None:
            raise RecipeError("weights: a pretrained backbone is opened, not started; give `architecture` instead")
        trial = new_config(config.architecture, vocab_size=config.vocab_size, **special_token_ids())
        _check(trial, config, config.pool or "cls", where="architecture")
        lowercase = bool(config.lowercase)
        train_bpe(texts, config.vocab_size, folder, lowercase=lowercase)
        trial.save_pretrained(folder)  # decides the class of the tokenizer, which may add tokens of its own
        num_ids = FolderTokenizer(folder, config.max_tokens, lowercase=lowercase).num_ids
        new_config(config.architecture, vocab_size=num_ids, **special_token_ids()).save_pretrained(folder)

    def forward(self, inputs: TokenInputs | PrefixInputs) -> TokenStates:
        """Token ids, or the kept states of the frozen part, -> states; wholes alone if no token is read."""
        packing = inputs.packing
        if packing is None and not self.pools_at_cut:
            raise TypeError("a text encoder reads states of texts, not of images")
        last = self.last_states(inputs)
        if packing is None:
            return self.wholes(last)
        if self.pools_first:
            return self.wholes(self._whole(last, packing))
        if self.sentence is not None:
            raise RecipeError("sentence_modules: leaves one vector of a text, but tokens are read; leave it out")
        state_KD: Tensor = self.projection(last)
        first_RD = packing.first(state_KD)
        if self._pool in ("mean", "last"):
            whole_RD = packing.mean(state_KD) if self._pool == "mean" else packing.last(state_KD)
        else:
            whole_RD = first_RD if self._pool == "cls" else self.projection(self._whole(last, packing))
        start_R, length_R = packing.first_R.values + 1, packing.length_R - 1
        states = TokenStates(state_KD, start_R, length_R, whole_RD, first_RD=first_RD)
        return through_head(states, self.head)

    def _whole(self, state_KH: Tensor, packing: Packing) -> Tensor:
        """The whole of each text, `(R, H)`, with the modules of sentence-transformers where these are asked for."""
        whole_RH = self._pooled(state_KH, packing)
        if self._pool == "pooler":
            whole_RH = self.backbone.pooler(whole_RH[:, None])
        return whole_RH if self.sentence is None else self.sentence(whole_RH)

    def _pooled(self, state_KH: Tensor, packing: Packing) -> Tensor:
        if self._pool == "mean":
            return packing.mean(state_KH)
        if self._pool == "max":
            return packing.padded(state_KH, fill=-torch.inf).amax(dim=1)
        return packing.last(state_KH) if self._pool == "last" else packing.first(state_KH)

    @property
    def backbone_facts(self) -> Mapping[str, Any]:
        """What decides the states of the backbone beside its tensors and inputs: the modules above its pooling too."""
        if self.sentence is None:
            return super().backbone_facts
        names = [type(module).__name__ for module in self.sentence]
        return {**super().backbone_facts, "sentence": fingerprint_of({"names": names}, self.sentence.state_dict())}

    def pooled(self, inputs: FieldInputs) -> Tensor:
        """The whole of each text as the backbone gives it, `(R, H)`."""
        if not isinstance(inputs, TokenInputs):
            raise TypeError("a text encoder reads token ids")
        return self._whole(self.hidden(inputs), inputs.packing)

    def layers(self, inputs: FieldInputs) -> Tensor:
        """The whole of each text at every layer, `(R, T, H)`."""
        if not isinstance(inputs, TokenInputs):
            raise TypeError("a text encoder reads token ids")
        if not self._layout.packs:
            raise RecipeError(f"layers: {self._settings.model_type} reads padded texts; its layers are not given")
        return torch.stack([self._pooled(state[0], inputs.packing) for state in self.layer_states(inputs)], dim=1)

    def hidden(self, inputs: TokenInputs | PixelInputs) -> Tensor:
        """The library's own last hidden state, `(K, H)`."""
        if isinstance(inputs, PixelInputs):
            raise TypeError("a text encoder reads token ids, not pixels")
        token_id_K, packing = inputs.token_id_K, inputs.packing
        if not self._layout.packs:
            return packing.packed(self._padded_hidden(token_id_K, packing))
        skipped = self._settings.pad_token_id + 1 if self._layout.positions_follow_padding else 0
        position_1K = packing.place_K.on(token_id_K.device)[None] + skipped
        hidden_1KH: Tensor = self.backbone(
            input_ids=token_id_K[None], position_ids=position_1K, packing=packing, **self._options()
        ).last_hidden_state
        return hidden_1KH[0]

    def hidden_of_states(self, inputs: PrefixInputs) -> Tensor:
        """As of any encoder; `(K, H)`."""
        packing = inputs.packing
        if packing is None:
            raise TypeError("states of texts have a packing")
        position_1K = packing.place_K.on(inputs.state.device)[None]
        hidden_1KH: Tensor = self.backbone(
            inputs_embeds=inputs.state[None], position_ids=position_1K, packing=packing, **self._options()
        ).last_hidden_state
        return hidden_1KH[0]

    def _options(self) -> dict[str, bool]:
        return {"use_cache": False} if self._layout.generates else {}

    def _padded_hidden(self, token_id_K: Tensor, packing: Packing) -> Tensor:
        """The last hidden state of texts that are padded to the longest, `(R, T, H)`."""
        token_id_RT = packing.padded(token_id_K, fill=self._tokenizer.pad_token_id)
        if self._layout.fills_window:
            num_missing = self._settings.max_position_embeddings - packing.longest
            token_id_RT = F.pad(token_id_RT, (0, num_missing), value=self._tokenizer.pad_token_id)
            filled_RTH: Tensor = self.backbone(input_ids=token_id_RT).last_hidden_state
            return filled_RTH[:, : packing.longest]
        # transformers looks into the mask, and a meta tensor holds nothing to look at.
        is_valid_RT = HostArray((np.arange(packing.longest) < packing.length_R[:, None]).astype(np.int64))
        mask_RT = None if token_id_RT.is_meta else is_valid_RT.on(token_id_RT.device)
        if mask_RT is None and self._layout.masks_itself:  # it does not look into a whole mask
            mask_RT = token_id_RT.new_zeros(packing.num_rows, 1, packing.longest, packing.longest, dtype=torch.float32)
        hidden_RTH: Tensor = self.backbone(
            input_ids=token_id_RT, attention_mask=mask_RT, **self._options()
        ).last_hidden_state
        return hidden_RTH

    def word_head(self) -> WordHead:
        """As of any text encoder. RecipeError for a backbone without a mask token, or one that sees no later word."""
        is_causal = sees_earlier_alone(self._layout, self._settings)
        refuse_no_mask(self._settings.model_type, self._tokenizer.mask_token_id, is_causal=is_causal)
        head = word_head_of(self.backbone, self._settings, getattr(self._settings, self._layout.width_name))
        if self._origin.is_pretrained and not head.load_own(self._origin.folder, self._settings):
            self.warnings += (f"{self._origin.folder}: has no head for hidden words; a fresh one learns",)
        return head

    def word_loss(self, inputs: TokenInputs, seed_R: Tensor, head: nn.Module, share: float) -> Tensor:
        """As of any text encoder."""
        words = hide_words(inputs.token_id_K, inputs.packing, seed_R, share, self._tokenizer)
        state_KH = self.hidden(replace(inputs, token_id_K=words.token_id_K))
        score_MV = head(state_KH.index_select(0, words.place_M), self.backbone.get_input_embeddings().weight)
        return word_losses(score_MV, words)

    def checkpoint_activations(self) -> None:
        """Of the blocks that learn: those in training mode."""
        checkpoint_blocks(self.backbone)

    def save_backbone(self, folder: Path, state: Mapping[str, Tensor]) -> None:
        """Write what `AutoModel` and `AutoTokenizer` read, and how texts are pooled, as sentence-transformers does."""
        save_model(self.backbone, folder, state)
        self._tokenizer.save(folder)
        width, tokenizer = getattr(self._settings, self._layout.width_name), self._tokenizer
        write_sentence_settings(
            folder,
            self._pool,
            width,
            tokenizer.max_tokens,
            lowercase=tokenizer.lowercase,
            prompt=tokenizer.prefix,
            above=write_sentence_head(folder, self.sentence),
        )

    def read_backbone(self, folder: Path) -> dict[str, Tensor]:
        """The tensors that `save_backbone` wrote, by the same names."""
        return read_state(folder, read_config(folder, HALVES), self._layout, self.backbone)


def _say_nothing(*_: Any) -> None:
    """What `warn_if_padding_and_no_attention_mask` does here."""


def _sentence_head(
    config: HFTextConfig, backbone: Backbone, said: SentenceSettings, width: int
) -> nn.Sequential | None:
    """The modules above the pooling, if the recipe asks for them. RecipeError where there are none."""
    if not config.sentence_modules:
        return None
    if said.home is None or not said.above:
        raise RecipeError(f"sentence_modules: has no effect, {backbone.folder} puts none above its pooling; remove it")
    return read_sentence_head(said.home, said.above, width, with_weights=backbone.is_pretrained)


def _settled(
    config: HFTextConfig, backbone: Backbone, warn: Callable[[str], object]
) -> tuple[SentenceSettings, Pool, bool]:
    """What the folder says, how texts are pooled, and whether they are lowercased.

    The recipe counts, then the folder; else texts are pooled by cls and keep their case.
    """
    said = SentenceSettings.read(
        backbone.folder, config.pool, warn, prompt=config.prefix, takes_modules=config.sentence_modules
    )
    for key, asked, found in (("pool", config.pool, said.pool), ("lowercase", config.lowercase, said.lowercase)):
        if None not in (asked, found) and asked != found:
            warn(f"{key}: the recipe says {_word(asked)}, {said.home} {_word(found)}; the recipe counts")
        elif asked is None and found not in (None, False, "cls") and backbone.is_pretrained:
            warn(f"{key}: {_word(found)}, as {said.home} says (sentence-transformers); the recipe says nothing of it")
    if said.max_tokens is not None and config.max_tokens > said.max_tokens:
        warn(f"max_tokens: {config.max_tokens}, but {said.home} was trained with {said.max_tokens} (max_seq_length)")
    lowercase = said.lowercase if config.lowercase is None else config.lowercase
    return said, config.pool or said.pool or "cls", bool(lowercase)


def _word(value: object) -> str:
    return str(value).lower()


def _check_tokens(
    tokenizer: FolderTokenizer,
    settings: Any,
    layout: TextLayout,
    pool: Pool,
    folder: Path,
    warn: Callable[[str], object],
) -> None:
    """CheckpointError for a tokenizer that does not belong to the configuration or to the pooling."""
    tokenizer.refuse_more_than(settings.vocab_size)
    if tokenizer.prefix and len(tokenizer.encode([""])[0]) >= tokenizer.max_tokens:
        raise RecipeError(
            f"prefix: fills all {tokenizer.max_tokens} tokens of a text, so that nothing of the text is read; raise "
            "max_tokens or shorten the prefix"
        )
    if layout.positions_follow_padding and tokenizer.pad_token_id != settings.pad_token_id:
        raise CheckpointError(
            f"{folder}: its tokenizer pads with id {tokenizer.pad_token_id}, but config.json says pad_token_id: "
            f"{settings.pad_token_id}, from which {settings.model_type} counts positions; the two must be the same"
        )
    if tokenizer.first_token is None and pool == "cls":
        raise CheckpointError(
            f"{folder}: its tokenizer puts no special token before a text, so pool: cls would take the first word for "
            "the whole; add `[CLS] $A [SEP]` as post_processor to tokenizer.json, or use pool: mean or last"
        )
    if tokenizer.first_token is None:
        warn(
            f"{folder}: its tokenizer puts no special token before a text; the first word is none of the item's tokens"
        )


def _check(settings: Any, config: HFTextConfig, pool: Pool, where: str) -> TextLayout:
    """The layout of a configuration; RecipeError when it does not suit the settings of the encoder."""
    layout = find_layout(LAYOUTS, settings.model_type, where, REFUSED)
    if sees_earlier_alone(layout, settings) and pool == "cls":
        raise RecipeError(f"pool: token 0 of {settings.model_type} sees nothing but itself; use last or mean")
    pools = pools_of(layout, has_cls=not sees_earlier_alone(layout, settings), has_last=True)
    if pool not in pools:
        raise RecipeError(f"pool: {settings.model_type} has no {pool}; use {', '.join(pools)}")
    if layout.positions_follow_padding and settings.pad_token_id is None:
        raise CheckpointError(f"{where}: pad_token_id: null, but {settings.model_type} counts positions from it")
    if layout.has_positions:
        skipped = settings.pad_token_id + 1 if layout.positions_follow_padding else 0
        longest = settings.max_position_embeddings - skipped
        if config.max_tokens > longest:
            raise RecipeError(f"max_tokens: {config.max_tokens} asked for, but {where} has positions for {longest}")
    return layout
