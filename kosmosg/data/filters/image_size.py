"""Rejects images that are too small or too narrow."""

from dataclasses import dataclass
from typing import ClassVar

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.errors import ConfigError


@dataclass(frozen=True)
class ImageSizeFilter:
    """Uses the size at which an image is annotated (after `square` and `working_size` of its source)."""

    needs: ClassVar[tuple[str, ...]] = ()

    min_side: int = 256
    """Minimum length of the shorter side in pixels."""
    max_aspect: float = 3.0
    """Maximum ratio of the longer to the shorter side."""

    def __post_init__(self) -> None:
        if self.min_side < 1 or self.max_aspect < 1:
            raise ConfigError(f"min_side is {self.min_side} and max_aspect {self.max_aspect:g}; both are at least 1")

    def __call__(self, sample: Sample) -> Rejection | None:
        width, height = sample.image.size
        short, long = sorted((width, height))
        if short < self.min_side:
            return Rejection("too-small", f"the image is {width} x {height}, its sides are to be {self.min_side}")
        if long > self.max_aspect * short:
            return Rejection(
                "too-narrow", f"the image is {width} x {height}, longer than {self.max_aspect:g} times its shorter side"
            )
        return None
