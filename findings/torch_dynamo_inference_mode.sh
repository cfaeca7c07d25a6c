#!/usr/bin/env bash
# guess: torch.compile traces `with torch.inference_mode(mode=False)` as it traces `with torch.inference_mode(False)`.
# seen: the argument by its name ends the trace with an AssertionError, by position it is traced; set_grad_enabled takes both.
# version: torch 2.15.0 (torch/_dynamo/variables/torch.py).
# why here: index tensors that later steps use again are made outside of inference mode; blocks that make one while they are traced
#   were left as they are by `machine.compile`.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
cat > traced.py <<'PY'
import torch


def by_name(x):
    with torch.inference_mode(mode=False):
        return x + 1


def by_position(x):
    with torch.inference_mode(False):
        return x + 1


def of_gradients(x):
    with torch.set_grad_enabled(mode=False):
        return x + 1


def outcome(function) -> str:
    try:
        torch.compile(function, backend="eager")(torch.ones(2))
    except Exception as error:
        return type(error).__name__
    return "traced"


print(f"torch {torch.__version__}")
found = [outcome(function) for function in (by_name, by_position, of_gradients)]
print(f"guess: all three are traced; seen: {found}")
raise SystemExit(found[0] == "traced" or found[1:] != ["traced", "traced"])
PY
env/bin/python traced.py
