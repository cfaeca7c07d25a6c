"""Text to token ids: the tokenizer in a backbone's folder, or one learned from the texts of the catalogue."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from pmmrec.encoders.huggingface import in_one_line, read_json
from pmmrec.errors import CheckpointError, RecipeError

SPECIAL_TOKENS = ("<pad>", "<cls>", "<sep>", "<mask>", "<unk>")
NUM_BYTES = 256
MAX_TOKENIZER_BYTES = 200_000_000
# Texts by which tokenizers are compared: capitals, accents, figures and signs.
PROBES = ("Red Shoes", "Café-chair no. 7, 3/4")
VOCABULARIES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)


class FolderTokenizer:
    """The tokenizer of contracts, around the one that transformers finds in a folder.

    `prefix` stands before each text, as `passage: ` of E5. Raises CheckpointError when the folder has no tokenizer, one
    with neither padding nor an end of texts, or one that would run code.
    """

    def __init__(self, folder: Path, max_tokens: int, *, lowercase: bool, prefix: str = "") -> None:
        self.max_tokens, self.lowercase, self.prefix = max_tokens, lowercase, prefix
        self._tokenizer = _open(folder)
        tokenizer = self._tokenizer
        # Nothing reads padding: a tokenizer without it, such as GPT-2's, has the end of texts there.
        padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        if padding is None:
            raise CheckpointError(f"{folder}: its tokenizer has no padding token; choose a backbone that has one")
        self.pad_token_id = int(padding)
        self._folder = folder
        model = self._tokenizer.backend_tokenizer.model
        if getattr(model, "dropout", None) is not None:
            model.dropout = None  # of BPE: it would give the same text other tokens each time
        self._forget_last_use()
        content = self._tokenizer.backend_tokenizer.to_str()
        reading = (self._tokenizer.truncation_side, self._tokenizer.split_special_tokens)
        rules = (max_tokens, lowercase, *reading, *([prefix] if prefix else []))
        self._fingerprint = hashlib.sha256("|".join(map(str, (content, *rules))).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Changes whenever any text could get other tokens."""
        return self._fingerprint

    @property
    def first_token(self) -> int | None:
        """The special token that stands before every text; None where there is none."""
        texts = ["", *PROBES]
        rows: list[list[int]] = self._tokenizer(texts, padding=False, return_attention_mask=False)["input_ids"]
        firsts = {token_ids[0] if token_ids else None for token_ids in rows}
        first = firsts.pop()
        return first if not firsts and first in self._tokenizer.all_special_ids else None

    @property
    def mask_token_id(self) -> int | None:
        """The token that stands for a hidden word; None where there is none."""
        found: int | None = self._tokenizer.mask_token_id
        return found

    @property
    def special_ids(self) -> list[int]:
        """The ids that are no words."""
        return sorted(set(self._tokenizer.all_special_ids))

    @property
    def num_special(self) -> int:
        """How many special tokens stand around every text."""
        return int(self._tokenizer.num_special_tokens_to_add())

    def say_differences(self, warn: Callable[[str], object]) -> None:
        """Tell `warn` of token types, which no encoder is given here, and of tokens that tokenizer.json has not."""
        types = self._tokenizer(list(PROBES), return_token_type_ids=True)["token_type_ids"]
        if any(map(any, types)):
            warn(f"{self._folder}: its tokenizer gives texts token types other than 0; encoders are given 0 here")
        path = self._folder / "tokenizer.json"
        if not path.is_file():
            return
        from tokenizers import Tokenizer

        own = Tokenizer.from_file(str(path))
        own.no_truncation()
        own.no_padding()
        for text in PROBES:
            theirs = self._tokenizer.convert_ids_to_tokens(self._tokenizer(text, truncation=False)["input_ids"])
            if theirs != own.encode(text).tokens:
                warn(
                    f"{path}: says {own.encode(text).tokens} for {text!r}, but transformers makes {theirs} of it; "
                    "tokenizer_config.json must say the same (do_lower_case, tokenizer_class)"
                )
                return

    @property
    def num_ids(self) -> int:
        """One more than the largest token id."""
        ids: dict[str, int] = self._tokenizer.get_vocab()
        return 1 + max(ids.values())

    def refuse_more_than(self, num_rows: int) -> None:
        """CheckpointError where a token has no row in an embedding of `num_rows`."""
        if self.num_ids > num_rows:
            raise CheckpointError(
                f"{self._folder}: its tokenizer has {self.num_ids} ids but its embedding {num_rows} rows; the "
                "two do not belong together"
            )

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text with the special tokens, at most `max_tokens` each, without padding."""
        if not texts:
            return []
        whole = [self.prefix + text for text in texts] if self.prefix else texts
        lowered = [text.lower() for text in whole] if self.lowercase else whole
        token_ids: list[list[int]] = self._tokenizer(
            lowered, truncation=True, max_length=self.max_tokens, padding=False, return_attention_mask=False
        )["input_ids"]
        return token_ids

    def save(self, folder: Path) -> None:
        """Write the tokenizer's files so that `AutoTokenizer` opens them."""
        self._forget_last_use()
        self._tokenizer.save_pretrained(folder)

    def _forget_last_use(self) -> None:
        # Truncation and padding of the last call would be written and read as if they belonged to the vocabulary.
        self._tokenizer.backend_tokenizer.no_truncation()
        self._tokenizer.backend_tokenizer.no_padding()


def train_bpe(texts: Iterable[str], vocab_size: int, folder: Path, *, lowercase: bool) -> None:
    """Learn a byte-level BPE of at most `vocab_size` tokens from `texts` and write it to `folder`.

    Bytes are the alphabet, so no text is ever unknown; `<cls>` and `<sep>` are put around every text.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    smallest = len(SPECIAL_TOKENS) + NUM_BYTES
    if vocab_size < smallest:
        raise RecipeError(f"vocab_size: {vocab_size} leaves no room for bytes and special tokens; at least {smallest}")
    backend = Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - a token of text
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_lowered(texts) if lowercase else iter(texts), trainer)
    ids = [(token, backend.token_to_id(token)) for token in ("<cls>", "<sep>")]
    backend.post_processor = processors.TemplateProcessing(single="<cls> $A <sep>", special_tokens=ids)
    names = {f"{token[1:-1]}_token": token for token in SPECIAL_TOKENS}
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(folder)


def special_token_ids() -> dict[str, int]:
    """What a configuration must say of the special tokens of `train_bpe`; they are always its first ids."""
    ids = {f"{token[1:-1]}_token_id": place for place, token in enumerate(SPECIAL_TOKENS)}
    return {**ids, "bos_token_id": ids["cls_token_id"], "eos_token_id": ids["sep_token_id"]}


def _lowered(texts: Iterable[str]) -> Iterator[str]:
    return (text.lower() for text in texts)


def _open(folder: Path) -> Any:
    from transformers import AutoTokenizer

    settings = folder / "tokenizer_config.json"
    if settings.is_file() and "fast_tokenizer_files" in read_json(settings):
        raise CheckpointError(f"{settings}: fast_tokenizer_files: names other files, which are never read; remove it")
    vocabularies = [folder / name for name in VOCABULARIES if (folder / name).is_file()]
    # Without one transformers would silently make up an empty vocabulary.
    if not vocabularies:
        raise CheckpointError(f"{folder}: has no tokenizer; copy tokenizer.json of the same backbone there")
    for path in vocabularies:
        if path.stat().st_size > MAX_TOKENIZER_BYTES:
            raise CheckpointError(f"{path}: larger than {MAX_TOKENIZER_BYTES:,} bytes; no vocabulary is")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust side raises bare exceptions for a broken file
        names = [path.name for path in vocabularies]
        if all(name.endswith(".model") for name in names):
            raise CheckpointError(
                f"{folder}: {names[0]} alone is read only where the package sentencepiece is installed; install it, or "
                "save the tokenizer once more where it is (AutoTokenizer, save_pretrained), which writes tokenizer.json"
            ) from error
        raise CheckpointError(f"{folder}: its tokenizer cannot be opened: {in_one_line(error)}") from error
    reads = set(tokenizer.vocab_files_names.values()) | {"tokenizer.json"}
    if not any(path.name in reads for path in vocabularies):  # again an empty vocabulary would have been made up
        raise CheckpointError(
            f"{folder}: holds {vocabularies[0].name}, but {type(tokenizer).__name__} reads "
            f"{' or '.join(sorted(reads))}; copy the tokenizer of the same backbone there"
        )
    if not tokenizer.is_fast:
        raise CheckpointError(f"{folder}: needs a tokenizer.json; a tokenizer of Python code is not read")
    longest = tokenizer.model_max_length
    if not isinstance(longest, int | float):
        raise CheckpointError(f"{folder}/tokenizer_config.json: model_max_length: {longest!r}: must be a number")
    return tokenizer
