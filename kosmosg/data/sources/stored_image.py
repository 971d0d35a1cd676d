"""How images of strangers become bytes of a record: checked, upright, RGB, no larger than asked for.

Bytes that already are all of that stay as they are: no second compression, and no time for one.
"""

import io
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image

from kosmosg.data.composition import shrink
from kosmosg.data.image_bytes import FORMATS, encode_image
from kosmosg.errors import ConfigError
from kosmosg.prompt import DEFAULT_LIMITS, PromptLimits, read_image

_ORIENTATION = 0x0112  # the EXIF tag


class StoredImage(NamedTuple):
    """An encoded image as `decode_image` reads it."""

    data: bytes
    width: int
    height: int
    shorter_side: int
    """Of the image as it came, in pixels."""


@dataclass(frozen=True)
class ImageStorage:
    """How images of ready records are stored.

    Args:
        size: longest side in pixels; smaller images are never enlarged.
        quality: JPEG quality at which all are encoded anew; None keeps the bytes of those that can stay as they are.
        limits: what an image may cost before it is decoded.

    Raises ConfigError for what cannot be.
    """

    size: int
    quality: int | None = None
    limits: PromptLimits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        if self.size < 8:
            raise ConfigError(f"image_size is {self.size}; it is at least 8")
        if self.quality is not None and not 1 <= self.quality <= 100:
            raise ConfigError(f"quality is {self.quality}; it is 1 to 100")

    def store(self, data: bytes, name: str) -> StoredImage:
        """One image, decoded once to be sure that it can be. Raises ImageError."""
        original = read_image(data, self.limits, name)
        image = shrink(original, self.size)
        if image is original and self.quality is None and is_plain(data):
            return StoredImage(data, *image.size, min(original.size))
        return StoredImage(encode_image(image, "jpeg", self.quality or 95), *image.size, min(original.size))


def is_plain(data: bytes) -> bool:
    """Whether `decode_image` gives what `read_image` gives, for bytes that the latter has accepted."""
    with Image.open(io.BytesIO(data)) as image:
        plain = image.format in [form.upper() for form in FORMATS] and image.mode in ("RGB", "L")
        return plain and not image.has_transparency_data and image.getexif().get(_ORIENTATION, 1) == 1
