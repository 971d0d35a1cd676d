"""Exact match: the share of answers that are the expected ones, to the letter."""

from collections.abc import Collection, Sequence

import numpy as np


def exact_match(answers: Sequence[str], expected: Sequence[str], groups: Sequence[Collection[str]]) -> dict[str, float]:
    """Share of right answers in each group, 0 to 1, groups in alphabetical order.

    Args:
        answers: what was said, in the form in which it is to be compared.
        expected: the right answer to each.
        groups: what each answer counts towards, such as `("question", "color")`.

    Raises:
        ValueError: the three do not have one entry for each case.
    """
    if not len(answers) == len(expected) == len(groups):
        raise ValueError(
            f"{len(answers)} answers and {len(groups)} groups for {len(expected)} cases; give one for each"
        )
    right: dict[str, list[bool]] = {}
    for said, wanted, counted in zip(answers, expected, groups, strict=True):
        for group in counted:
            right.setdefault(group, []).append(said == wanted)
    return {group: float(np.mean(marks)) for group, marks in sorted(right.items())}
