"""Several trainings of one recipe, judged on the same prompts: the mean of the seeds and how sure it is.

Two things make such a number uncertain. Other prompts would have given others: that is what the interval says, by
drawing whole prompts anew. Another seed would have given another: its spread stands beside the mean.

Letters: S seeds, B prompts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kosmosg.errors import DataError
from kosmosg.toyworld.benchmark import Correctness

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


def measure_trials(trials: Sequence[Correctness], rounds: int = ROUNDS, seed: int = 0) -> dict[str, Measured]:
    """The figures of `Correctness.scores` for S trainings of one recipe that drew the same B prompts.

    Raises DataError when the trainings were not asked the same.
    """
    first = trials[0]
    if any(not np.array_equal(trial.picture, first.picture) for trial in trials):
        raise DataError("the trainings were judged on different prompts; draw the same ones with each")
    found = [trial.scores() for trial in trials]
    rng = np.random.default_rng(seed)
    prompts = len(first.background)
    order = np.argsort(first.picture, kind="stable")
    ends = np.cumsum(np.bincount(first.picture, minlength=prompts))
    entities = np.split(order, ends[:-1])  # rows of each prompt
    drawn: dict[str, list[float]] = {name: [] for name in found[0]}
    for _ in range(rounds):
        chosen = rng.integers(prompts, size=prompts)
        rows = np.concatenate([entities[prompt] for prompt in chosen])
        picture = np.repeat(np.arange(prompts), [len(entities[prompt]) for prompt in chosen])
        again = [_taken(trial, rows, picture, chosen).scores() for trial in trials]
        for name, values in drawn.items():
            values.append(float(np.mean([scores[name] for scores in again])))
    measured = {}
    for name, values in drawn.items():
        seeds = tuple(scores[name] for scores in found)
        low, high = np.quantile(values, [0.025, 0.975])
        measured[name] = Measured(float(np.mean(seeds)), float(low), float(high), seeds)
    return measured


def measure_shares(
    trials: Sequence[Mapping[str, np.ndarray]], rounds: int = ROUNDS, seed: int = 0
) -> dict[str, Measured]:
    """The same for plain answers, name -> (B,) zeros and ones for each of S trainings."""
    rng = np.random.default_rng(seed)
    measured = {}
    for name in trials[0]:
        table = np.stack([np.asarray(trial[name], dtype=np.float64) for trial in trials])
        means = table.mean(axis=0)[rng.integers(table.shape[1], size=(rounds, table.shape[1]))].mean(axis=1)
        low, high = np.quantile(means, [0.025, 0.975])
        seeds = tuple(float(value) for value in table.mean(axis=1))
        measured[name] = Measured(float(table.mean()), float(low), float(high), seeds)
    return measured


def _taken(marks: Correctness, rows: np.ndarray, picture: np.ndarray, prompts: np.ndarray) -> Correctness:
    return Correctness(picture, marks.kind[rows], marks.pattern[rows], marks.hue_error[rows], marks.background[prompts])
