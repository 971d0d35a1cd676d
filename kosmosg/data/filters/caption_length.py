"""Rejects captions with too few or too many words."""

from dataclasses import dataclass
from typing import ClassVar

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.errors import ConfigError


@dataclass(frozen=True)
class CaptionLengthFilter:
    """Counts whitespace-separated words."""

    needs: ClassVar[tuple[str, ...]] = ("caption",)

    min_words: int = 3
    """Minimum number of words."""
    max_words: int = 60
    """Maximum number of words."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_words <= self.max_words:
            raise ConfigError(
                f"min_words is {self.min_words} and max_words {self.max_words}; no caption can have so many words"
            )

    def __call__(self, sample: Sample) -> Rejection | None:
        words = len(sample.caption.split())
        if words < self.min_words:
            return Rejection("short-caption", f"{sample.caption!r} has {words} words, fewer than {self.min_words}")
        if words > self.max_words:
            return Rejection("long-caption", f"the caption has {words} words, more than {self.max_words}")
        return None
