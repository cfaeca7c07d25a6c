#!/usr/bin/env bash
# guess: a model in eval mode gives the same states in the same order, and leaves the random numbers of others alone.
# seen: ViltModel gives the states of an image's patches in another order at each call, in eval mode too, though none is left
#   out, and draws from torch's global generator for it. The tokens of the text keep their places, and means agree.
# version: transformers 5.23.0 (models/vilt/modeling_vilt.py, visual_embed, torch.multinomial), torch 2.15.0.
# why here: a resumed run would draw other dropout once items are ranked; the joint encoder reads patches in their order.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 numpy==2.2.6
HF_HUB_OFFLINE=1 env/bin/python -W ignore - <<'PY'
import torch
import transformers
from transformers import ViltConfig, ViltModel

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("guess: two calls in eval mode give equal states, and draw no random number")
sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 50}
torch.manual_seed(0)
model = ViltModel(ViltConfig(**sizes, image_size=64, patch_size=16)).double().eval()
inputs = {"input_ids": torch.tensor([[1, 40, 7, 2]]), "pixel_values": torch.rand(1, 3, 64, 64).double()}
before = torch.get_rng_state()
with torch.no_grad():
    first, second = (model(**inputs).last_hidden_state[0] for _ in range(2))
same, draws = torch.equal(first, second), not torch.equal(before, torch.get_rng_state())
words, means = torch.allclose(first[:5], second[:5]), torch.allclose(first.mean(0), second.mean(0))
print(f"seen: equal: {same}; text and cls of the image equal: {words}; means equal: {means}; draws numbers: {draws}")
raise SystemExit((same, words, means, draws) != (False, True, True, True))
PY
