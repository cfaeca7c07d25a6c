#!/usr/bin/env bash
# guess: get_text_features of a CLIP pools a text at its end token, whose id its configuration says.
# seen: where that id is 2, the value of early CLIP files, the token with the largest id is taken, wherever it stands. A CLIP of
#   one's own, whose tokenizer has <sep> at id 2, is so pooled at its rarest word, without a word; GroupViT alike.
# version: transformers 5.23.0 (models/clip/modeling_clip.py, `if self.eos_token_id == 2`), torch 2.15.0.
# why here: fresh networks get a tokenizer with such ids; the joint encoder pools at the last token itself.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 numpy==2.2.6
HF_HUB_OFFLINE=1 env/bin/python -W ignore - <<'PY'
import torch
import transformers
from transformers import CLIPTextConfig, CLIPTextModel

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("guess: the vector of <cls> 40 7 <sep> is the state of <sep>, at place 3")
sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
found = []
for end in (2, 3):
    torch.manual_seed(0)
    model = CLIPTextModel(CLIPTextConfig(**sizes, eos_token_id=end)).eval()
    with torch.no_grad():
        out = model(input_ids=torch.tensor([[1, 40, 7, end]]))
    place = [place for place in range(4) if torch.equal(out.last_hidden_state[0, place], out.pooler_output[0])]
    print(f"seen: with eos_token_id {end} it is the state at place {place[0]}")
    found += place
raise SystemExit(found != [1, 3])
PY
