"""A perceptual hash: 64 bits that survive re-encoding and resizing, so that copies of an image are found by number.

The signs of the 64 lowest frequencies (without the mean) of the grey image at 32 x 32 pixels, by a discrete cosine
transform; Zauner 2010 (phash.org) compares with the median instead, which flips twice as many bits. Two images of the
same content differ in a bit or two, unrelated ones in about 32. What the hash does not see past: crops of more than a
hundredth at each side, mirroring, rotation, frames and large lettering.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kosmosg.data.sources.base import RejectedRow, rejected
from kosmosg.errors import ImageError
from kosmosg.prompt import read_image

Hashes = NDArray[np.uint64]  # (N,)

ALGORITHM = "dct-sign-64"
VERSION = "1"
SIDE = 32
FLAT = 0
"""The hash of an image without any structure, such as a white page. It says nothing: flat images are never near."""
FAINT = 1.0
"""Coefficient (of grey values 0 to 255) below which no structure is seen: a wave of a sixteenth of a grey level."""

_ORDER = sorted(
    ((row, column) for row in range(SIDE) for column in range(SIDE) if row or column),
    key=lambda place: (place[0] + place[1], place[0]),
)[:64]
_ROWS, _COLUMNS = (np.array(places) for places in zip(*_ORDER, strict=True))
_BITS = np.uint64(1) << np.arange(64, dtype=np.uint64)


class HashedImage(NamedTuple):
    """What a hash list keeps of one image."""

    key: str
    """The id that its sample has in a build."""
    hash: int
    """64 bits, `FLAT` for an image without structure."""
    sha256: bytes
    """32 bytes, of the encoded image."""


def image_hash(image: Image.Image) -> int:
    """The 64-bit hash of an image, `FLAT` where there is nothing to hash."""
    pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.ndim == 3 else pixels
    small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    waves = cv2.dct(small.astype(np.float32))[_ROWS, _COLUMNS]
    if np.abs(waves).max() < FAINT:
        return FLAT
    # Graphics are often symmetric: what is zero but for rounding is to be no coin toss.
    return int(_BITS[waves > FAINT / 100].sum(dtype=np.uint64))


def hash_images(images: Iterable[tuple[str, bytes]]) -> Iterator[HashedImage | RejectedRow]:
    """Hashes of encoded images, given with their keys, in order and one at a time.

    JPEGs are decoded at a fraction of their size, which moves two bits at most. What cannot be decoded comes out as a
    rejection (`unreadable`), never as an exception.
    """
    for key, encoded in images:
        try:
            found = image_hash(read_image(encoded, name=key, at_least=4 * SIDE))
        except ImageError as error:
            yield rejected(key, key, "unreadable", " ".join(str(error).split()))
        else:
            yield HashedImage(key, found, hashlib.sha256(encoded).digest())


def hamming(left: Hashes, right: Hashes | np.uint64) -> NDArray[np.uint8]:
    """In how many of the 64 bits hashes differ, pair by pair."""
    distances: NDArray[np.uint8] = np.bitwise_count(left ^ right)
    return distances
