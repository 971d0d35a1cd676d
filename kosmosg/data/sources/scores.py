"""Scores that metadata of the web carries: read instead of computed again, and thresholds on them."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kosmosg.errors import ConfigError, DataError

SCORES = frozenset(
    (
        *("punsafe", "pwatermark", "aesthetic", "aesthetic_score", "similarity", "nsfw"),  # LAION
        *("watermark_score", "clip_similarity_vitb32", "clip_similarity_vitl14", "nsfw_score_opennsfw2"),  # COYO
        *("nsfw_score_gantman", "aesthetic_score_laion_v2"),
        "language_score",  # FineWeb
    )
)
"""Columns that hold scores, in lower case."""


@dataclass(frozen=True)
class ScoreRange:
    """Which scores a row may have: numbers between `min` and `max`, or one of some words."""

    min: float | None = None
    max: float | None = None
    one_of: tuple[str, ...] = ()
    """Words that are taken, such as UNLIKELY of LAION's column NSFW."""

    def __post_init__(self) -> None:
        if self.min is None and self.max is None and not self.one_of:
            raise ConfigError("thresholds: give min, max or one_of")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ConfigError(f"thresholds: min {self.min:g} is above max {self.max:g}")


class Outside(NamedTuple):
    """A threshold that a row does not meet."""

    reason: str
    """The column's name."""
    message: str


@dataclass(frozen=True)
class Thresholds:
    """Ranges by the name of a column, in any case."""

    ranges: Mapping[str, ScoreRange] = field(default_factory=dict)

    def columns(self, path: str, names: Iterable[str]) -> list[str]:
        """The columns of a file that they need. Raises DataError for one that is not there."""
        names = list(names)
        lower = {name.lower(): name for name in names}
        missing = [name for name in self.ranges if name.lower() not in lower]
        if missing:
            raise DataError(f"{path} has no column {missing[0]} for thresholds; there are {listed(names)}")
        return [lower[name.lower()] for name in self.ranges]

    def describe(self) -> dict[str, dict[str, Any]]:
        """For the manifest."""
        return {
            name: {"min": limits.min, "max": limits.max, "one_of": list(limits.one_of)}
            for name, limits in self.ranges.items()
        }

    def judge(self, values: Mapping[str, Any]) -> Outside | None:
        """The first threshold that a row does not meet."""
        if not self.ranges:
            return None
        lower = {name.lower(): value for name, value in values.items()}
        for name, allowed in self.ranges.items():
            message = _outside(lower.get(name.lower()), allowed)
            if message:
                return Outside(name, f"{name} {message}")
        return None


def score_hints(values: Mapping[str, Any]) -> dict[str, str]:
    """What annotators and filters may know of a row's scores: `score.punsafe` -> "0.0012"."""
    return {
        f"score.{name.lower()}": str(value)
        for name, value in values.items()
        if name.lower() in SCORES and value != "" and value is not None
    }


def listed(names: Iterable[str]) -> str:
    """Names for a message, not all of very many."""
    names = list(names)
    return ", ".join(names[:20]) + (", ..." if len(names) > 20 else "") if names else "none"


def _outside(value: Any, allowed: ScoreRange) -> str:
    if allowed.one_of:
        word = "" if value is None else str(value).strip()
        if word.lower() not in [other.lower() for other in allowed.one_of]:
            return f"is {word[:40] or 'empty'!r}, taken are {', '.join(allowed.one_of)}"
        if allowed.min is None and allowed.max is None:
            return ""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if math.isnan(number):
        return f"is {str(value)[:40]!r}, not a number"
    if allowed.min is not None and number < allowed.min:
        return f"is {number:g}, the least is {allowed.min:g}"
    if allowed.max is not None and number > allowed.max:
        return f"is {number:g}, the most is {allowed.max:g}"
    return ""
