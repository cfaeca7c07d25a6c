"""Project vectors of items or users to the plane by t-SNE, so that similar ones are close."""
# N points, D width.

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MAX_PERPLEXITY = 30.0
LEAST_POINTS = 5
MAX_GROUPS = 7
OTHER, NOTHING = "other", "not given"


def perplexity_for(num_points: int) -> float:
    """The perplexity of t-SNE: 30, or a third of the other points if there are few."""
    return min(MAX_PERPLEXITY, max(1.0, (num_points - 1) / 3))


def project(vectors_ND: NDArray[np.float32], seed: int) -> NDArray[np.float64]:
    """Positions in the plane, `(N, 2)`; deterministic for the same vectors and seed.

    ValueError for fewer than five points, whose map would only show the seed.
    """
    from sklearn.manifold import TSNE  # type: ignore[import-untyped]  # scikit-learn has no types

    if len(vectors_ND) < LEAST_POINTS:
        raise ValueError(f"{len(vectors_ND)} points are too few for a map; it takes {LEAST_POINTS}")
    spread_D = vectors_ND.std(axis=0)
    init = "pca" if (spread_D > 0).sum() >= 2 else "random"
    tsne = TSNE(perplexity=perplexity_for(len(vectors_ND)), init=init, random_state=seed, n_jobs=1)
    placed: NDArray[np.float64] = tsne.fit_transform(vectors_ND).astype(np.float64)
    return placed


def sampled(num_points: int, most: int, seed: int) -> NDArray[np.int64]:
    """At most `most` row numbers, drawn at random, in order."""
    if num_points <= most:
        return np.arange(num_points)
    return np.sort(np.random.default_rng(seed).choice(num_points, size=most, replace=False))


def largest_groups(values: Sequence[str | None]) -> list[str]:
    """The value of each point, with rare values replaced by `other`, because a map has few distinct markers."""
    named = [value if value else NOTHING for value in values]
    counts = Counter(named)
    if len(counts) <= MAX_GROUPS + 1:
        return named
    kept = {name for name, _ in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))[:MAX_GROUPS]}
    return [name if name in kept else OTHER for name in named]
