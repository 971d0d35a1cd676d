"""Turns down images of which the entities cover too little, or nearly all."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.errors import ConfigError


@dataclass(frozen=True)
class MaskCoverageFilter:
    """By the share of the image that lies in the mask of any entity. Single entities that are too small or too large
    are left out by `compose` anyway (`min_area`, `max_area`)."""

    needs: ClassVar[tuple[str, ...]] = ("masks",)

    min_share: float = 0.02
    """Share of the image, at least."""
    max_share: float = 0.95
    """Share of the image, at most."""
    threshold: float = 0.3
    """Probability above which a pixel belongs to an entity, as in `compose.threshold`."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_share <= self.max_share <= 1:
            raise ConfigError(
                f"min_share is {self.min_share:g} and max_share {self.max_share:g}; shares lie between 0 and 1, the "
                "smaller first"
            )
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"threshold is {self.threshold:g}; it is a probability below 1")

    def __call__(self, sample: Sample) -> Rejection | None:
        share = 0.0
        if sample.cuts:
            highest = np.max([cut.probability for cut in sample.cuts], axis=0)
            share = float((highest > self.threshold * 255).mean())
        if share < self.min_share:
            return Rejection("low-coverage", f"entities cover {share:.1%} of the image, less than {self.min_share:.1%}")
        if share > self.max_share:
            return Rejection(
                "high-coverage", f"entities cover {share:.1%} of the image, more than {self.max_share:.1%}"
            )
        return None
