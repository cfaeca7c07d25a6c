#!/usr/bin/env bash
# guess: the score of a short history in RecBole's NextItNet depends on its last item, as that of a full one does.
# seen: the model reads its output at the last column, and histories are padded on the right: where the convolutions do not
#   reach back far enough, histories of different items score alike, and elsewhere padding is read as an item.
# version: recbole 1.2.1 (model/sequential_recommender/nextitnet.py), torch 2.15.0, numpy 1.26.4.
# why here: tests/peers compares NextItNet with it on full histories only; ours reads the state of the last item.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check recbole==1.2.1 torch==2.15.0 numpy==1.26.4 pandas==2.3.3 scipy==1.13.1
env/bin/python -W ignore - <<'PY'
from importlib.metadata import version
from pathlib import Path

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.utils import get_model

print(f"recbole {version('recbole')}, torch {torch.__version__}")
Path("data/x").mkdir(parents=True)
rows = [f"user{user}\titem{item}\t{item}" for user in range(3) for item in range(6)]
Path("data/x/x.inter").write_text("\n".join(["user_id:token\titem_id:token\ttimestamp:float", *rows]) + "\n")
settings = {
    "data_path": "data",
    "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
    "train_neg_sample_args": None,
    "eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "full"},
    "use_gpu": False,
    "MAX_ITEM_LIST_LENGTH": 5,
    "embedding_size": 8,
    "block_num": 1,
    "dilations": [1],
    "kernel_size": 2,
}
config = Config(model="NextItNet", dataset="x", config_dict=settings)
train, _, _ = data_preparation(config, create_dataset(config))
model = get_model("NextItNet")(config, train.dataset).eval()


def difference(one: list[int], other: list[int], length: int) -> float:
    """The widest difference of the scores of two histories."""
    batches = [{"item_id_list": torch.tensor([items]), "item_length": torch.tensor([length])} for items in (one, other)]
    return (model.full_sort_predict(batches[0]) - model.full_sort_predict(batches[1])).abs().max().item()


short, full = difference([1, 0, 0, 0, 0], [2, 0, 0, 0, 0], 1), difference([3, 4, 5, 3, 1], [3, 4, 5, 3, 2], 5)
print(f"guess: both differ where the last item differs; seen: {short} for histories of one item, {full:.4f} for full ones")
raise SystemExit(not (short == 0 and full > 0))
PY
