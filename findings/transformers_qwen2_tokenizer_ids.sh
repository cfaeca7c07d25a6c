#!/usr/bin/env bash
# guess: a saved fast tokenizer opens through AutoTokenizer with the ids that it was saved with, whatever model lies beside it.
# seen: beside the configuration of a Qwen2 it opens as a Qwen2Tokenizer, with `<|endoftext|>` added as one id more than the embedding
#   has rows; beside that of a BERT it is unchanged. tokenizer_config.json, which names another class, is not heeded.
# version: transformers 5.23.0, tokenizers 0.23.3.
# why here: fresh backbones of any architecture get a tokenizer of our own; folders are opened through the tokenizer file alone.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check transformers==5.23.0 tokenizers==0.23.3
cat > opened.py <<'PY'
import tokenizers
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerFast, Qwen2Config

words = {f"word{number}": number for number in range(300)}
sizes = {}
for config in (BertConfig(vocab_size=300), Qwen2Config(vocab_size=300)):
    model = Tokenizer(WordLevel(words, unk_token="word0"))
    saved = PreTrainedTokenizerFast(tokenizer_object=model, unk_token="word0", pad_token="word0")
    saved.save_pretrained(config.model_type)
    config.save_pretrained(config.model_type)
    sizes[config.model_type] = len(AutoTokenizer.from_pretrained(config.model_type))
print(f"transformers {transformers.__version__}, tokenizers {tokenizers.__version__}")
print(f"guess: 300 ids beside both; seen: {sizes}")
raise SystemExit(sizes != {"bert": 300, "qwen2": 301})
PY
env/bin/python opened.py
