#!/usr/bin/env bash
# guess: index_factory("IVF1,PQ2x8") trains a coarse and a product quantiser, so that codes take what k-means takes.
# seen: unless the name ends in "np" it also anneals the numbers of the centroids for Hamming distances, which takes more
#   than 50 times as long, and gives the same centroids under other numbers.
# version: faiss-cpu 1.15.1; IndexIVFPQ.do_polysemous_training is True after the factory, False by its constructor.
# why here: VQRec makes the codes of items by "OPQ32,IVF1,PQ32x8"; what it looks up by them does not depend on their numbers.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install --quiet --disable-pip-version-check faiss-cpu==1.15.1 numpy==2.2.6
OMP_NUM_THREADS=1 "$dir/venv/bin/python" - <<'PY'
import time

import faiss
import numpy as np

vectors = np.random.default_rng(0).normal(size=(400, 64)).astype("f4")
took, found = {}, {}
for name in ("IVF1,PQ2x8np", "IVF1,PQ2x8"):
    index = faiss.index_factory(64, name, faiss.METRIC_INNER_PRODUCT)
    index.pq.cp.min_points_per_centroid = 1
    began = time.process_time()
    index.train(vectors)
    took[name] = time.process_time() - began
    centroids = faiss.vector_to_array(index.pq.centroids).reshape(2, 256, 32)
    found[name] = np.stack([part[np.lexsort(part.T)] for part in centroids])
    print(f"seen: {name}: polysemous {index.do_polysemous_training}, {took[name]:.2f} CPU s")
same = np.array_equal(*found.values())
print(f"guess: the same time for both; seen: the same centroids in other order: {same}")
raise SystemExit(0 if same and took["IVF1,PQ2x8"] > 50 * took["IVF1,PQ2x8np"] else 1)
PY
