#!/usr/bin/env bash
# guess: faiss lists equal scores in the order in which the keys were added, and a longer list begins with a shorter one.
# seen: IndexFlatL2 does; IndexFlatIP, filled with the same keys, lists equal scores in the reverse order, so that a list
#   of 4 begins with an entry that a list of 3 does not hold. It does not matter how many queries are asked at once.
# version: faiss-cpu 1.15.1; ties are broken by CMin::cmp2 and CMax::cmp2 in faiss/utils/ordered_key_value.h.
# why here: catalogues hold items that say the same ("plain shirt"), and these tie exactly. An index would list them the
#   other way round than every other list, and one more item would turn the end of a list over.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.2.6
"$dir/venv/bin/python" - <<'PY'
import faiss
import numpy as np

print("faiss", faiss.__version__, "numpy", np.__version__)
keys = np.ones((10, 8), dtype=np.float32)
seen = {}
for name in ("IndexFlatL2", "IndexFlatIP"):
    index = getattr(faiss, name)(8)
    index.add(keys)
    for num_queries in (1, 100):  # few and many queries are computed in two ways
        for k in (3, 4):
            seen[name, num_queries, k] = index.search(keys[:1].repeat(num_queries, axis=0), k)[1][0].tolist()
print("guess: [0, 1, 2] and [0, 1, 2, 3] from both")
for (name, num_queries, k), entries in seen.items():
    print(f"seen: {name}, {num_queries} queries, k={k}: {entries}")
expected = {
    asked: list(range(asked[2]))[:: 1 if asked[0] == "IndexFlatL2" else -1] for asked in seen
}
raise SystemExit(0 if seen == expected else 1)
PY
