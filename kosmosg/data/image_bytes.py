"""Encoding images and masks as bytes for records. To decode untrusted bytes use `kosmosg.prompt.read_image`.

Masks are stored as 1-bit PNG: 512 x 512 take about a kilobyte, and every tool can open them.
"""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FORMATS = ("png", "jpeg", "webp")


def encode_image(image: Image.Image, form: str = "png", quality: int = 95) -> bytes:
    """Encode as "png" (lossless), "jpeg" or "webp" at `quality` of 100. Metadata of the source is not kept."""
    out = io.BytesIO()
    options: dict[str, Any] = {} if form == "png" else {"quality": quality}
    if form == "jpeg":
        options["subsampling"] = 0  # full colour resolution: thin red stripes survive
    image.save(out, format=form.upper(), **options)
    return out.getvalue()


def decode_image(data: bytes, at_least: int = 0) -> Image.Image:
    """Decode an image that this package encoded itself, as RGB. For untrusted bytes use `kosmosg.prompt.read_image`.

    With `at_least`, a JPEG may come at a half, a quarter or an eighth of its size, its shorter side no shorter than
    that many pixels: libjpeg scales while it decodes, for a fraction of the time.
    """
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if at_least:
            image.draft(None, (at_least, at_least))
        image.load()
        # A conversion from RGB to RGB would copy all pixels.
        return image if image.mode == "RGB" else image.convert("RGB")


def encode_mask(mask: NDArray[np.bool_]) -> bytes:
    """A boolean (H, W) array as a 1-bit PNG."""
    out = io.BytesIO()
    grey = Image.fromarray(np.asarray(mask, dtype=np.uint8) * 255)
    grey.convert("1", dither=Image.Dither.NONE).save(out, format="PNG")
    return out.getvalue()


def decode_mask(data: bytes) -> NDArray[np.bool_]:
    """The inverse of `encode_mask`: boolean (H, W)."""
    with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
        return np.asarray(image.convert("L")) > 127
