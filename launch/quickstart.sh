#!/usr/bin/env bash
# The whole way once, on a world made by code: import, pretrain, publish, transfer, rank. Called again, it goes on where it
# was stopped, and shows the comparison where nothing is left to do. Arguments A.B=C are settings of all trainings;
# `clean` takes away what it made.
set -euo pipefail
marker=demo.incomplete # is there while the demo world is made
made=(demo "$marker" runs/tiny runs/transfer runs/scratch runs/zero-shot hub/tiny)
if [ "${1:-}" = clean ]; then
  rm -rf "${made[@]}"
  exit 0
fi
has_demo() {
  [ -f demo/bazaar/domain.json ] && [ -f demo/gallery/domain.json ] && [ -f demo/boutique/domain.json ]
}
if [ -e demo ] && [ ! -e "$marker" ] && ! has_demo; then
  echo "error: demo: exists and was not made by the quickstart; move it elsewhere, or remove it" >&2
  exit 2
fi
settings=(train.state.every_minutes=0.5 "$@")

tell_how_to_go_on() {
  local code=$?
  if [ "$code" -ne 0 ]; then
    echo "stopped: \`make quickstart\` goes on from here; \`make clean\` takes away what it made, to begin anew" >&2
  fi
}
trap tell_how_to_go_on EXIT

train() { # the folder of the run, then the command
  local folder=$1
  shift
  if [ -f "$folder/events.jsonl" ] && tail -n 1 "$folder/events.jsonl" | grep -q '"event": "finished"'; then
    echo "$folder: finished earlier, left as it is"
    return
  fi
  if [ -e "$folder" ]; then
    echo "$folder: begun earlier, goes on"
  fi
  "$@" --resume "${settings[@]}"
}

if [ ! -e "$marker" ] && has_demo; then
  echo "demo: made earlier, left as it is"
else
  touch "$marker"
  rm -rf demo # what a stop may have left of it
  pmmrec data demo --out demo
  rm "$marker"
  pmmrec data stats demo/bazaar demo/gallery demo/boutique
fi
train runs/tiny pmmrec pretrain pretrain/tiny
if [ -f runs/zero-shot/metrics.json ]; then
  echo "runs/zero-shot: ranked earlier, left as it is"
else
  pmmrec evaluate tiny demo/boutique --name zero-shot --out runs/zero-shot
fi
train runs/scratch pmmrec finetune finetune/tiny --from none --on demo/boutique name=scratch
train runs/transfer pmmrec finetune finetune/tiny --from tiny --on demo/boutique name=transfer
pmmrec compare runs/scratch runs/zero-shot runs/transfer
echo "made: ${made[*]}; \`make clean\` takes them away, and the next \`make quickstart\` begins anew"
