"""Scores of several training runs of one recipe on the same prompts, with intervals over prompts."""

from collections.abc import Sequence

import numpy as np

from kosmosg.errors import DataError
from kosmosg.eval.statistics import ROUNDS, Measured
from kosmosg.toyworld.benchmark import Correctness


def measure_trials(trials: Sequence[Correctness], rounds: int = ROUNDS, seed: int = 0) -> dict[str, Measured]:
    """The figures of `Correctness.scores` for S trainings of one recipe that were asked the same B prompts.

    Raises DataError when the trainings were not asked the same.
    """
    first = trials[0]
    if any(not np.array_equal(trial.image, first.image) for trial in trials):
        raise DataError("the trainings were judged on different prompts; generate images of the same ones with each")
    found = [trial.scores() for trial in trials]
    rng = np.random.default_rng(seed)
    prompts = len(first.background)
    order = np.argsort(first.image, kind="stable")
    ends = np.cumsum(np.bincount(first.image, minlength=prompts))
    entities = np.split(order, ends[:-1])  # rows of each prompt
    drawn: dict[str, list[float]] = {name: [] for name in found[0]}
    for _ in range(rounds):
        chosen = rng.integers(prompts, size=prompts)
        rows = np.concatenate([entities[prompt] for prompt in chosen])
        image = np.repeat(np.arange(prompts), [len(entities[prompt]) for prompt in chosen])
        again = [_taken(trial, rows, image, chosen).scores() for trial in trials]
        for name, values in drawn.items():
            values.append(float(np.mean([scores[name] for scores in again])))
    measured = {}
    for name, values in drawn.items():
        seeds = tuple(scores[name] for scores in found)
        low, high = np.quantile(values, [0.025, 0.975])
        measured[name] = Measured(float(np.mean(seeds)), float(low), float(high), seeds)
    return measured


def _taken(right: Correctness, rows: np.ndarray, image: np.ndarray, prompts: np.ndarray) -> Correctness:
    return Correctness(image, right.shape[rows], right.pattern[rows], right.hue_error[rows], right.background[prompts])
