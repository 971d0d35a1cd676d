"""Several trainings of one recipe, judged on the same prompts: the mean of the seeds and how sure it is.

Two things make such a number uncertain. Other prompts would have given others: that is what the interval says, by
drawing whole prompts anew. Another seed would have given another: its spread stands beside the mean.

Letters: S seeds, B prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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
        """`.93 [.90, .95]`, for people."""
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
