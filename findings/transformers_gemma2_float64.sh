#!/usr/bin/env bash
# guess: Gemma2Model computes in float64 what it computes in float32, more exactly.
# seen: with a text that is shorter than its batch by more than the sliding window, all states of that text are NaN in float64, those of
#   its valid tokens too; in float32 all are finite.
# version: transformers 5.23.0 (models/gemma2/modeling_gemma2.py, eager attention), torch 2.15.0.
# why here: gradients and hidden states of encoders are compared with the library's own in float64; that of Gemma 2 can be in float32 alone.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.15.0 transformers==5.23.0 numpy==2.4.6
cat > states.py <<'PY'
import torch
import transformers
from transformers import Gemma2Config, Gemma2Model

torch.manual_seed(0)
sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 8}
config = Gemma2Config(**sizes, num_key_value_heads=1, vocab_size=50, sliding_window=4, attn_implementation="eager")
token_ids = torch.arange(1, 13).repeat(2, 1)
mask = torch.ones_like(token_ids)
mask[1, 3:] = 0
model = Gemma2Model(config).eval()
finite = {}
for name, dtype in (("float32", torch.float32), ("float64", torch.float64)):
    with torch.no_grad():
        states = model.to(dtype)(input_ids=token_ids, attention_mask=mask).last_hidden_state
    finite[name] = [bool(states[0].isfinite().all()), bool(states[1, :3].isfinite().any())]
print(f"torch {torch.__version__}, transformers {transformers.__version__}")
print(f"guess: the long text and the valid tokens of the short one are finite in both; seen: {finite}")
raise SystemExit(finite != {"float32": [True, True], "float64": [True, False]})
PY
env/bin/python states.py
