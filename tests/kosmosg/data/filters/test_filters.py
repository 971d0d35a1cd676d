"""Each filter keeps what it should keep, turns down the rest with its reason, and refuses settings without sense."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter

from kosmosg.data.annotators.base import Sample
from kosmosg.data.filters.blur import BlurFilter, sharpness
from kosmosg.data.filters.caption_length import CaptionLengthFilter
from kosmosg.data.filters.image_size import ImageSizeFilter
from kosmosg.errors import ConfigError


def sample(image: Image.Image, caption: str = "") -> Sample:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return Sample("1", "test", buffer.getvalue(), caption=caption)


def noise(width: int = 64, height: int = 64) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ((64, 64), None),
        ((63, 64), "too-small"),
        ((64, 128), None),
        ((64, 129), "too-narrow"),
        ((129, 64), "too-narrow"),
    ],
)
def test_image_size(size: tuple[int, int], reason: str | None) -> None:
    found = ImageSizeFilter(min_side=64, max_aspect=2.0)(sample(noise(*size)))
    assert (found.reason if found else None) == reason


@pytest.mark.parametrize(
    ("words", "reason"), [(1, "short-caption"), (2, None), (4, None), (5, "long-caption"), (0, "short-caption")]
)
def test_caption_length(words: int, reason: str | None) -> None:
    found = CaptionLengthFilter(min_words=2, max_words=4)(sample(noise(), " ".join(["word"] * words)))
    assert (found.reason if found else None) == reason


def test_blur_turns_down_what_has_no_edges_and_more_blur_is_never_sharper() -> None:
    blurred = [noise().filter(ImageFilter.GaussianBlur(radius)) for radius in (0, 1, 2, 4)]
    values = [sharpness(image) for image in blurred]
    assert values == sorted(values, reverse=True)
    keep = BlurFilter(min_variance=values[1])
    assert [keep(sample(image)) is None for image in blurred] == [True, True, False, False]
    flat = BlurFilter()(sample(Image.new("RGB", (32, 32), "red")))
    assert flat is not None
    assert flat.reason == "blurred"


@pytest.mark.parametrize(
    "make",
    [
        lambda: ImageSizeFilter(min_side=0),
        lambda: ImageSizeFilter(max_aspect=0.5),
        lambda: CaptionLengthFilter(min_words=5, max_words=4),
        lambda: BlurFilter(min_variance=-1),
    ],
)
def test_settings_without_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()  # type: ignore[operator]
