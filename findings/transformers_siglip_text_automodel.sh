#!/usr/bin/env bash
# guess: AutoModel opens a configuration that AutoConfig makes by its name, for the text half of SigLIP as for that of CLIP.
# seen: AutoConfig knows siglip_text_model, and AutoModel refuses it; it opens siglip_vision_model and clip_text_model. SiglipTextModel has
#   to be named.
# version: transformers 5.23.0 (models/auto/modeling_auto.py), torch 2.15.0.
# why here: text towers of SigLIP are encoders of texts, and folders of one half are opened by model type.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.23.0 numpy==2.4.6
cat > opened.py <<'PY'
import torch
import transformers
from transformers import AutoConfig, AutoModel, SiglipTextModel

sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def opened(name: str) -> str:
    try:
        return type(AutoModel.from_config(AutoConfig.for_model(name, **sizes))).__name__
    except ValueError:
        return "refused"


found = {name: opened(name) for name in ("siglip_text_model", "siglip_vision_model", "clip_text_model")}
named = type(SiglipTextModel(AutoConfig.for_model("siglip_text_model", **sizes))).__name__
print(f"torch {torch.__version__}, transformers {transformers.__version__}")
print(f"guess: all three are opened; seen: {found}, and {named} by its name")
expected = {"siglip_text_model": "refused", "siglip_vision_model": "SiglipVisionModel", "clip_text_model": "CLIPTextModel"}
raise SystemExit(found != expected or named != "SiglipTextModel")
PY
env/bin/python opened.py
