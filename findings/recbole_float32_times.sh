#!/usr/bin/env bash
# guess: RecBole's leave-one-out in temporal order ("LS", "TO") tests the item with the latest time of each user.
# seen: times are stored and sorted as float32, which holds every 128th second of Unix times of today only. Among times that
#   became equal the test target is the last row of the file, whatever its time.
# version: recbole 1.2.1 (a field `timestamp:float` becomes float32 in data/dataset/dataset.py), torch 2.15.0, numpy 1.26.4.
# why here: a comparison with RecBole on Unix times would compare other targets. tests/peers gives it ranks of times instead.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check recbole==1.2.1 torch==2.15.0 numpy==1.26.4 pandas==2.3.3 scipy==1.13.1
env/bin/python -W ignore - <<'PY'
from importlib.metadata import version
from pathlib import Path

from recbole.config import Config
from recbole.data import create_dataset, data_preparation

print(f"recbole {version('recbole')}, numpy {version('numpy')}")
EVAL = {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"}
SETTINGS = {"eval_args": EVAL, "load_col": {"inter": ["user_id", "item_id", "timestamp"]}, "use_gpu": False}


def test_target(first: int) -> str:
    """Of one user who touched items 0 to 5 ten seconds apart, in a file whose rows are in another order."""
    Path("data/x").mkdir(parents=True, exist_ok=True)
    rows = [f"user\titem{item}\t{first + 10 * item}" for item in (3, 1, 4, 0, 5, 2)]
    head = "user_id:token\titem_id:token\ttimestamp:float"
    Path("data/x/x.inter").write_text("\n".join([head, *rows]) + "\n")
    config = Config(model="SASRec", dataset="x", config_dict={"data_path": "data", "train_neg_sample_args": None, **SETTINGS})
    dataset = create_dataset(config)
    *_, test = data_preparation(config, dataset)
    (_, _, _, positive) = next(iter(test))
    return str(dataset.field2id_token["item_id"][positive[0]])


found = [test_target(0), test_target(1_700_000_000)]
print(f"guess: item5 both times; seen: {found[0]} for times from 0 on, {found[1]} for Unix times of 2023")
raise SystemExit(found != ["item5", "item2"])
PY
