"""From features to numbers: cosine scores, the Frechet distance, and how far a mean may be trusted.

All sums are taken in float64. Letters: N images, D feature dimensions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kosmosg.errors import DataError

Floats = npt.NDArray[np.floating]
Doubles = npt.NDArray[np.float64]


def cosine(a: Floats, b: Floats) -> Doubles:
    """Cosine of each row of `a (N, D)` with the same row of `b (N, D)`: (N,) in [-1, 1].

    Raises DataError for other shapes, and for a row of zeros, which has no direction.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise DataError(f"cosine needs two matrices of one shape, got {a.shape} and {b.shape}; pair the rows first")
    first, second = unit(a), unit(b)
    products: Doubles = np.einsum("nd,nd->n", first, second)
    return products.clip(-1.0, 1.0)


def unit(features: Floats) -> Doubles:
    """Rows at length 1, float64. Raises DataError when one is zero or not finite."""
    double = features.astype(np.float64)
    length = np.linalg.norm(double, axis=-1, keepdims=True)
    bad = np.flatnonzero(~(np.isfinite(length) & (length > 0)))
    if len(bad):
        raise DataError(f"row {bad[0]} of the features has length {length[bad[0], 0]}; the image or network is broken")
    scaled: Doubles = double / length
    return scaled


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of N feature vectors."""

    count: int  # N
    mean: Doubles  # (D,)
    covariance: Doubles  # (D, D), with N - 1 in the denominator

    @classmethod
    def of(cls, features: Floats, rows: int = 4096) -> "Moments":
        """Of `features (N, D)`, `rows` at a time. Raises DataError for fewer than two vectors.

        The covariance is summed over differences from the mean: E[xx'] - E[x]E[x]' would lose precision to
        cancellation.
        """
        if features.ndim != 2 or len(features) < 2:
            raise DataError(f"moments need at least 2 feature vectors (N, D), got shape {features.shape}; draw more")
        mean: Doubles = features.mean(axis=0, dtype=np.float64)
        scatter: Doubles = np.zeros((features.shape[1], features.shape[1]))
        for start in range(0, len(features), rows):
            centred = features[start : start + rows].astype(np.float64) - mean
            scatter += centred.T @ centred
        return cls(len(features), mean, scatter / (len(features) - 1))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (AB)^(1/2)), the squared Frechet distance of two normal distributions; FID.

    tr (AB)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2). With symmetric roots nothing complex can appear
    and no epsilon is needed where the covariances are singular, as they are for fewer images than dimensions.
    Raises DataError when the dimensions differ.
    """
    if a.mean.shape != b.mean.shape:
        raise DataError(
            f"features of {a.mean.shape[0]} and {b.mean.shape[0]} dimensions are of two networks; use one for both"
        )
    shared = np.linalg.svd(_root(a.covariance) @ _root(b.covariance), compute_uv=False).sum()
    offset = a.mean - b.mean
    distance = offset @ offset + np.trace(a.covariance) + np.trace(b.covariance) - 2.0 * shared
    return max(0.0, float(distance))


def _root(covariance: Doubles) -> Doubles:
    """The symmetric square root of a positive semidefinite matrix; rounding below zero is cut off."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2.0)
    root: Doubles = (vectors * np.sqrt(values.clip(min=0.0))) @ vectors.T
    return root
