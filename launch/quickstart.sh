#!/usr/bin/env bash
# The whole way once, on a world made by code: import, pretrain, publish, transfer, rank. Leaves demo/, runs/ and hub/.
set -euo pipefail
for folder in demo runs/tiny runs/transfer runs/scratch runs/zero-shot hub/tiny; do
  if [ -e "$folder" ]; then
    echo "error: $folder exists; \`make clean\` takes away what an earlier quickstart left" >&2
    exit 2
  fi
done
pmmrec data demo --out demo
pmmrec data stats demo/bazaar demo/gallery demo/boutique
pmmrec pretrain pretrain/tiny
pmmrec evaluate tiny demo/boutique --name zero-shot --out runs/zero-shot
pmmrec finetune finetune/tiny --from none --on demo/boutique name=scratch
pmmrec finetune finetune/tiny --from tiny --on demo/boutique name=transfer
pmmrec compare runs/zero-shot runs/scratch runs/transfer
