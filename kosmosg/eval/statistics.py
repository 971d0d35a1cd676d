"""Means with confidence intervals over images, subjects, prompts and training runs of one recipe.

The figure of a recipe has two uncertainties. Other prompts would have given other values: the interval, a bootstrap
over prompts, measures this. Another seed would have given another value: the spread over seeds is reported with the
mean.

Letters: S seeds, B prompts.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kosmosg.errors import DataError

ROUNDS = 1000  # of drawing prompts anew


@dataclass(frozen=True)
class Measured:
    """One figure of a recipe."""

    mean: float
    """Over seeds."""
    low: float
    high: float
    """95 % interval over prompts of that mean."""
    seeds: tuple[float, ...]
    """The figure of each seed."""

    def show(self, digits: int = 2) -> str:
        """As text, such as `0.93 [0.90, 0.95]`."""
        return f"{self.mean:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def measure_shares(
    trials: Sequence[Mapping[str, np.ndarray]], rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Measured]:
    """The mean and interval of answers, name -> (B,) zeros and ones for each of S trainings on the same B prompts."""
    rng = np.random.default_rng(seed)
    measured = {}
    for name in trials[0]:
        table = np.stack([np.asarray(trial[name], dtype=np.float64) for trial in trials])
        means = table.mean(axis=0)[rng.integers(table.shape[1], size=(rounds, table.shape[1]))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        seeds = tuple(float(value) for value in table.mean(axis=1))
        measured[name] = Measured(float(table.mean()), float(low), float(high), seeds)
    return measured


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval of confidence."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap(
    values: np.ndarray,
    clusters: Sequence[Hashable] | None = None,
    level: float = 0.95,
    rounds: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean of `values (N,)` with a percentile bootstrap interval.

    `clusters`, one label per value, are resampled as wholes: images of one subject resemble each other, and resampling
    single images would treat 3000 images of 30 subjects as 3000 independent ones. With a single cluster nothing is
    known about others, and the interval is NaN.
    """
    if len(values) == 0:
        raise DataError("there are no values to take the mean of; generate at least one image")
    labels = list(range(len(values))) if clusters is None else list(clusters)
    if len(labels) != len(values):
        raise DataError(f"{len(values)} values with {len(labels)} cluster labels; give one label for each value")
    places = {label: place for place, label in enumerate(dict.fromkeys(labels))}
    member = np.array([places[label] for label in labels])
    sums = np.bincount(member, weights=values.astype(np.float64))
    sizes = np.bincount(member).astype(np.float64)
    mean = float(sums.sum() / sizes.sum())
    if len(sums) < 2:
        return Estimate(mean, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    # How often each cluster is sampled in each round, (rounds, clusters): sums are then matrix products.
    times = rng.multinomial(len(sums), np.full(len(sums), 1.0 / len(sums)), size=rounds).astype(np.float64)
    means = (times @ sums) / (times @ sizes)
    low, high = np.quantile(means, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return Estimate(mean, float(low), float(high))


def flat(estimates: Mapping[str, Estimate]) -> dict[str, float | None]:
    """Mean and interval as plain numbers; unknown ones (with one subject) are None, because JSON has no NaN."""
    values: dict[str, float | None] = {}
    for name, estimate in estimates.items():
        known = estimate.low == estimate.low
        values |= {
            name: estimate.mean,
            f"{name}_low": estimate.low if known else None,
            f"{name}_high": estimate.high if known else None,
        }
    return values
