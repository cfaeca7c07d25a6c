"""Maps keep neighbours together and follow their seed."""

from __future__ import annotations

import numpy as np
import pytest

from pmmrec.report.html.maps import LEAST_POINTS, largest_groups, perplexity_for, project, sampled


def two_clusters(each: int) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(2 * each, 6))
    drawn[each:] += 40
    return drawn.astype(np.float32)


@pytest.mark.parametrize("each", [3, 10, 40])
def test_similar_points_are_close_even_in_small_maps(each: int) -> None:
    place_N2 = project(two_clusters(each), seed=0)
    first, second = place_N2[:each], place_N2[each:]
    gap = np.linalg.norm(first.mean(axis=0) - second.mean(axis=0))
    spread = max(np.linalg.norm(part - part.mean(axis=0), axis=1).mean() for part in (first, second))
    assert gap > spread


def test_a_map_follows_its_seed() -> None:
    vectors = two_clusters(8)
    assert np.array_equal(project(vectors, seed=1), project(vectors, seed=1))


@pytest.mark.parametrize(("num_points", "expected"), [(5, 4 / 3), (31, 10.0), (91, 30.0), (1000, 30.0)])
def test_perplexity_is_less_than_the_points_allow(num_points: int, expected: float) -> None:
    assert perplexity_for(num_points) == pytest.approx(expected)
    assert perplexity_for(num_points) < num_points


def test_equal_vectors_can_be_mapped() -> None:
    assert np.isfinite(project(np.ones((9, 4), dtype=np.float32), seed=0)).all()


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="too few for a map"):
        project(np.ones((LEAST_POINTS - 1, 3), dtype=np.float32), seed=0)


def test_a_sample_is_ordered_without_repeats_and_complete_if_it_fits() -> None:
    drawn = sampled(100, 10, seed=3)
    assert len(set(drawn.tolist())) == 10
    assert drawn.tolist() == sorted(drawn.tolist()) == sampled(100, 10, seed=3).tolist()
    assert sampled(100, 10, seed=4).tolist() != drawn.tolist()
    assert sampled(7, 10, seed=3).tolist() == list(range(7))


def test_rare_values_become_other_and_missing_ones_are_named() -> None:
    values = [*["a"] * 3, *["b"] * 2, *"cdefghij", None]
    groups = largest_groups(values)
    assert groups[:5] == ["a", "a", "a", "b", "b"]
    assert len(set(groups)) == 8
    assert groups[-1] in ("other", "not given")
    assert largest_groups(["x", None, ""]) == ["x", "not given", "not given"]
