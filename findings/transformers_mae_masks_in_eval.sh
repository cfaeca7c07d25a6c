#!/usr/bin/env bash
# guess: a model in eval mode gives the same states for the same image, so ViTMAEModel can encode a catalogue once.
# seen: ViTMAEModel leaves out 75 % of the patches, drawn anew at each call, in eval mode too: 49 + 1 tokens of 197, other
#   ones each time. With mask_ratio=0 all are there, in another random order each time; only a `noise` given fixes it.
# version: transformers 5.23.0 (models/vit_mae/modeling_vit_mae.py, random_masking), torch 2.15.0.
# why here: item vectors would differ from ranking to ranking; the encoder gives its own noise, fixed for each image.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check transformers==5.23.0 torch==2.15.0 numpy==2.2.6
HF_HUB_OFFLINE=1 env/bin/python -W ignore - <<'PY'
import torch
import transformers
from transformers import ViTMAEConfig, ViTMAEModel

print(f"transformers {transformers.__version__}, torch {torch.__version__}")
print("guess: in eval mode two calls give the same states of 197 tokens")
torch.manual_seed(0)
sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
image = torch.rand(1, 3, 224, 224)
found = []
for settings in ({}, {"mask_ratio": 0.0}):
    model = ViTMAEModel(ViTMAEConfig(**sizes, **settings)).double().eval()
    with torch.no_grad():
        first, second = (model(pixel_values=image.double()).last_hidden_state[0] for _ in range(2))
        noise = torch.arange(196.0)[None]
        fixed = [model(pixel_values=image.double(), noise=noise).last_hidden_state[0] for _ in range(2)]
    same, same_mean = torch.equal(first, second), torch.allclose(first.mean(0), second.mean(0))
    print(f"seen: {settings or 'default'}: {len(first)} tokens; two calls equal: {same}, their means: {same_mean}")
    found.append((len(first), same, same_mean, torch.equal(*fixed)))
raise SystemExit(found != [(50, False, False, True), (197, False, True, True)])
PY
