#!/usr/bin/env bash
# The whole way once, on a world made by code: import, pretrain, publish, transfer, rank. `clean` takes away what it made.
set -euo pipefail
made=(demo runs/tiny runs/transfer runs/scratch runs/zero-shot hub/tiny)
if [ "${1:-}" = clean ]; then
  rm -rf "${made[@]}"
  exit 0
fi
for folder in "${made[@]}"; do
  if [ -e "$folder" ]; then
    echo "error: $folder exists; \`make clean\` takes away what an earlier quickstart made, and nothing else" >&2
    exit 2
  fi
done
pmmrec data demo --out demo
pmmrec data stats demo/bazaar demo/gallery demo/boutique
pmmrec pretrain pretrain/tiny
pmmrec evaluate tiny demo/boutique --name zero-shot --out runs/zero-shot
pmmrec finetune finetune/tiny --from none --on demo/boutique name=scratch
pmmrec finetune finetune/tiny --from tiny --on demo/boutique name=transfer
pmmrec compare runs/scratch runs/zero-shot runs/transfer
