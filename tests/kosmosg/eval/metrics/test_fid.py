"""Distances against closed forms and scipy; intervals against what statistics says they should be."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from kosmosg.errors import DataError
from kosmosg.eval.metrics.fid import Moments, cosine, frechet_distance
from kosmosg.eval.statistics import bootstrap


def normal(seed: int, count: int = 500, width: int = 12) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(width, width))
    return (rng.normal(size=(count, width)) @ mixing + rng.normal(size=width)).astype(np.float32)


def test_distance_of_diagonal_normals_has_a_closed_form() -> None:
    a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
    one = Moments(10, np.zeros(3), np.diag(a))
    other = Moments(10, np.array([3.0, 0.0, 4.0]), np.diag(b))
    assert frechet_distance(one, other) == pytest.approx(25 + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-12)


def test_distance_equals_the_formula_with_scipys_matrix_root() -> None:
    one, other = normal(0), normal(1)
    a, b = np.cov(one.T.astype(np.float64)), np.cov(other.T.astype(np.float64))
    offset = one.mean(0, dtype=np.float64) - other.mean(0, dtype=np.float64)
    expected = offset @ offset + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(Moments.of(one), Moments.of(other)) == pytest.approx(expected, rel=1e-9)


def test_distance_is_zero_for_the_same_pictures_also_when_they_are_few() -> None:
    few = normal(4, count=5, width=40)  # a singular covariance, of rank 4
    assert frechet_distance(Moments.of(few), Moments.of(few[::-1])) == pytest.approx(
        0, abs=1e-6 * float(np.square(few).sum())
    )


def test_moments_keep_their_digits_far_from_zero() -> None:
    """E[xx'] - E[x]E[x]' in float32 would give nonsense for a mean of a thousand and a spread of a thousandth."""
    spread = np.random.default_rng(5).normal(scale=1e-3, size=(2000, 3))
    far = Moments.of(1000.0 + spread, rows=300)
    assert np.allclose(far.covariance, np.cov(spread.T), rtol=1e-6, atol=1e-12)


def test_cosine_is_bounded_symmetric_and_refuses_what_has_no_direction() -> None:
    one, other = normal(6), normal(7)
    values = cosine(one, other)
    assert values.dtype == np.float64
    assert np.abs(values).max() <= 1
    assert np.allclose(values, cosine(other, 3 * one))
    assert np.allclose(cosine(one, one), 1)
    theirs = torch.nn.functional.cosine_similarity(torch.from_numpy(one), torch.from_numpy(other))
    assert np.allclose(values, theirs, atol=1e-6)
    with pytest.raises(DataError, match=r"row 2 of the features has length 0\.0"):
        cosine(np.array([[1.0, 0], [0, 1], [0, 0]]), np.ones((3, 2)))
    with pytest.raises(DataError, match="two matrices of one shape"):
        cosine(one, other[:5])


def test_features_of_two_networks_are_not_compared() -> None:
    with pytest.raises(DataError, match="12 and 7 dimensions"):
        frechet_distance(Moments.of(normal(0)), Moments.of(normal(0, width=7)))
    with pytest.raises(DataError, match="at least 2"):
        Moments.of(normal(0)[:1])


class TestBootstrap:
    def test_interval_of_independent_values_is_the_textbook_one(self) -> None:
        values = np.random.default_rng(0).normal(size=400)
        estimate = bootstrap(values)
        assert estimate.mean == pytest.approx(values.mean())
        assert (estimate.high - estimate.low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)

    def test_pictures_of_one_subject_count_as_one(self) -> None:
        """Thirty subjects, a hundred alike images each: the spread is that of thirty values, not of 3000."""
        means = np.random.default_rng(1).normal(size=30)
        values, subjects = np.repeat(means, 100), np.repeat(np.arange(30), 100).tolist()
        clustered, single = bootstrap(values, subjects), bootstrap(values)
        assert (clustered.high - clustered.low) / 2 == pytest.approx(1.96 * means.std() / np.sqrt(30), rel=0.15)
        assert clustered.high - clustered.low > 8 * (single.high - single.low)
        assert bootstrap(values, subjects) == clustered, "the same seed gives the same interval"

    def test_one_subject_says_nothing_about_others(self) -> None:
        estimate = bootstrap(np.array([0.2, 0.4]), ["cat", "cat"])
        assert estimate.mean == pytest.approx(0.3)
        assert np.isnan(estimate.low)
        assert np.isnan(estimate.high)

    def test_what_cannot_be_averaged_is_refused(self) -> None:
        with pytest.raises(DataError, match="no values"):
            bootstrap(np.array([]))
        with pytest.raises(DataError, match="2 values with 1 cluster labels"):
            bootstrap(np.ones(2), ["cat"])
