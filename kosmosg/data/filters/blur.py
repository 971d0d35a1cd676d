"""Rejects blurred images: the variance of the Laplacian (Pech-Pacheco et al. 2000) is small without sharp edges."""

from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np
from PIL import Image

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.errors import ConfigError

SIDE = 512


@dataclass(frozen=True)
class BlurFilter:
    """Uses the variance of the Laplacian of the grey values (0 to 255), at a longer side of at most 512 pixels, so that
    large photos are not judged by invisible noise."""

    needs: ClassVar[tuple[str, ...]] = ()

    min_variance: float = 50.0
    """Variance below which an image counts as blurred. A flat image has 0, a sharp photo several hundred."""

    def __post_init__(self) -> None:
        if self.min_variance < 0:
            raise ConfigError(f"min_variance is {self.min_variance:g}; a variance is never negative")

    def __call__(self, sample: Sample) -> Rejection | None:
        variance = sharpness(sample.image)
        if variance < self.min_variance:
            return Rejection("blurred", f"the Laplacian varies by {variance:.1f}, less than {self.min_variance:g}")
        return None


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of an image's grey values."""
    grey = image.convert("L")
    if max(grey.size) > SIDE:
        grey.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return float(cv2.Laplacian(np.asarray(grey), cv2.CV_64F).var())
