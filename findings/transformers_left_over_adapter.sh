#!/usr/bin/env bash
# guess: AutoModel.from_pretrained opens the weights of a folder that holds config.json and model.safetensors; an
#   adapter_config.json left beside them belongs to peft and plays no part.
# seen: where peft is installed, the adapter is put on the model without a word: other vectors, other names of parameters
#   (base_layer, lora_A), and save_pretrained then writes the adapter alone, without the weights.
# version: transformers 5.23.0 (models/auto/auto_factory.py, from_pretrained; integrations/peft.py), peft 0.21.2, torch 2.13.0.
# why here: save_pretrained of peft into the folder of its base leaves such a folder; what is trained from it is then lost.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check transformers==5.23.0 peft==0.21.2 torch==2.13.0 numpy==2.2.6
HF_HUB_OFFLINE=1 TRANSFORMERS_VERBOSITY=error env/bin/python -W ignore - <<'PY'
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModel, BertConfig, BertModel
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()

print(f"transformers {transformers.__version__}, peft {peft.__version__}, torch {torch.__version__}")
print("guess: the plain weights are read, and saved again")
torch.manual_seed(0)
sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
sizes |= {"initializer_range": 0.5}
plain = BertModel(BertConfig(**sizes)).eval()
ids = torch.tensor([[1, 2, 3]])
with torch.no_grad():
    expected = plain(ids).last_hidden_state
plain.save_pretrained("folder")
get_peft_model(plain, LoraConfig(target_modules=["query"], init_lora_weights=False)).save_pretrained("folder")
print(f"the folder holds {sorted(path.name for path in Path('folder').iterdir() if path.suffix != '.md')}")
opened = AutoModel.from_pretrained("folder").eval()
with torch.no_grad():
    distance = float((opened(ids).last_hidden_state - expected).abs().max())
adapted = [name for name, _ in opened.named_parameters() if "lora_" in name]
opened.save_pretrained("again")
again = sorted(path.name for path in Path("again").iterdir() if path.suffix == ".safetensors")
print(f"seen: {len(adapted)} parameters of LoRA, vectors up to {distance:.3f} apart, saved again as {again}")
raise SystemExit(0 if adapted and distance > 1e-3 and again == ["adapter_model.safetensors"] else 1)
PY
