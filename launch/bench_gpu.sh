#!/usr/bin/env bash
# Measure on one GPU, in one call of under eight minutes, what training and encoding at base size reach:
#   launch/bench_gpu.sh [--tiny] [FOLDER]
# Full fine-tuning in bf16 (useful MFU), the top two blocks through kept states (share of its roofline), and the encoding of
# a catalogue (share of a plain product). Weights are fresh and the platform is made up, so no network is needed. Writes
# gpu.json and gpu.md to FOLDER, else $OUT, else runs/bench_gpu. --tiny takes small sizes and a CPU, to try the script.
# WHEELS=DIR installs the wheels in DIR first, for machines that have torch and transformers but not all of the rest.
set -euo pipefail
cd "$(dirname "$0")/.."

arguments=() folder="${OUT:-runs/bench_gpu}"
for argument in "$@"; do
  if [ "$argument" = --tiny ]; then arguments+=(--tiny); else folder="$argument"; fi
done

if [ -n "${WHEELS:-}" ]; then
  site="$(mktemp -d)"
  python3 -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 PYTHONUNBUFFERED=1

# What was measured so far is in FOLDER even where the time is up.
exec timeout 470 "${PYTHON:-python3}" tests/benchmarks/gpu.py "$folder" "${arguments[@]}"
