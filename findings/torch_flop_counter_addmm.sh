#!/usr/bin/env bash
# guess: FlopCounterMode counts the same product the same, whether its sum is written in place or not.
# seen: torch.addmm(c, a, b), also with out=, counts 2 m k n; c.addmm_(a, b) counts 0, and so does baddbmm_.
# version: torch 2.15.0 (torch/utils/flop_counter.py lists mm, addmm, bmm and baddbmm, and no form in place).
# why here: `pmmrec bench` holds its formulas of useful FLOPs to this counter, and a step that adds products in place seemed to
#   need fewer of them; the layers here write the sum by `out=`.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check torch==2.15.0 numpy==2.4.6
env/bin/python - <<'PY'
import torch
from torch.utils.flop_counter import FlopCounterMode

print(f"torch {torch.__version__}")
a_MK, b_KN, c_MN = torch.randn(4, 5), torch.randn(5, 6), torch.randn(4, 6)
a_BMK, b_BKN, c_BMN = torch.randn(2, 4, 5), torch.randn(2, 5, 6), torch.randn(2, 4, 6)


def counted(product) -> int:
    with FlopCounterMode(display=False) as counter:
        product()
    return counter.get_total_flops()


found = {
    "addmm": counted(lambda: torch.addmm(c_MN, a_MK, b_KN)),
    "addmm, out=": counted(lambda: torch.addmm(c_MN, a_MK, b_KN, out=c_MN)),
    "addmm_": counted(lambda: c_MN.addmm_(a_MK, b_KN)),
    "baddbmm": counted(lambda: torch.baddbmm(c_BMN, a_BMK, b_BKN)),
    "baddbmm_": counted(lambda: c_BMN.baddbmm_(a_BMK, b_BKN)),
}
print(f"guess: 240 for each of the first three, 480 for both others; seen: {found}")
raise SystemExit(list(found.values()) != [240, 240, 0, 480, 0])
PY
