"""Preprocessing for feature networks: the resizing functions that published numbers were computed with.

A different resizing function gives the network a different image and shifts FID by whole points. Each function
here is one published behaviour, named after its origin; `kosmosg.eval.protocol` says which is used.

Letters: H x W pixels of an image. Arrays are (H, W, 3) with values in 0..255.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Pixels = npt.NDArray[np.float32]  # (H, W, 3), 0..255, not rounded
Bytes = npt.NDArray[np.uint8]  # (H, W, 3)

INCEPTION_SIZE = 299  # pixels a side
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Framing:
    """How an image is prepared for FID."""

    resize: str
    """`tf1` or `clean`: the way to 299 x 299."""
    crop: str = ""
    """Before that: nothing, `plain` (shorter side 256 without antialias, centre square) or `smooth` (with it)."""

    def __call__(self, image: Image.Image) -> Tensor:
        """An RGB image as (3, 299, 299), 0..255."""
        pixels = np.asarray(crop_square(image, 256) if self.crop == "smooth" else image)
        if self.crop == "plain":
            pixels = crop_square_plain(pixels, 256)
        resized = resize_clean(pixels) if self.resize == "clean" else resize_tf1(pixels)
        return torch.from_numpy(resized).permute(2, 0, 1)


def crop_square(image: Image.Image, side: int) -> Image.Image:
    """Shorter side to `side` pixels with antialias, then the centre square: `Resize(side)` and `CenterCrop(side)` of
    torchvision on a PIL image."""
    width, height = shorter_side(image.width, image.height, side)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    return centre(image, side)


def centre(image: Image.Image, side: int) -> Image.Image:
    """The centre square of an image that is at least that large."""
    left, top = centre_start(image.width, side), centre_start(image.height, side)
    return image.crop((left, top, left + side, top + side))


def crop_square_plain(pixels: Bytes, side: int) -> Bytes:
    """The same without antialias, as torchvision 0.15 and before did it on tensors: bilinear between the four nearest
    pixels, in [0, 1], and rounded down to bytes as `torchmetrics` does it. For images reduced a lot it aliases.
    """
    height, width = pixels.shape[:2]
    columns, rows = shorter_side(width, height, side)
    scaled = _channels_first(pixels) / 255.0
    if (columns, rows) != (width, height):
        scaled = F.interpolate(scaled, (rows, columns), mode="bilinear", align_corners=False)
    top, left = centre_start(rows, side), centre_start(columns, side)
    cut: Bytes = (scaled[0, :, top : top + side, left : left + side] * 255).byte().permute(1, 2, 0).numpy()
    return cut


def shorter_side(width: int, height: int, side: int) -> tuple[int, int]:
    """(width, height) when the shorter side becomes `side`; the longer one is rounded down, as in torchvision."""
    if width <= height:
        return side, int(side * height / width)
    return int(side * width / height), side


def centre_start(length: int, side: int) -> int:
    """First pixel of the centre; halves go to the even neighbour, as Python's round and torchvision have it."""
    return round((length - side) / 2.0)


def resize_clean(pixels: Bytes, side: int = INCEPTION_SIZE) -> Pixels:
    """clean-fid: PIL's antialiased bicubic on each channel in float, so that nothing is rounded, clipped to 0..255."""
    channels = [
        Image.fromarray(pixels[:, :, channel].astype(np.float32)).resize((side, side), Image.Resampling.BICUBIC)
        for channel in range(3)
    ]
    resized: Pixels = np.stack([np.asarray(channel) for channel in channels], axis=-1).clip(0, 255)
    return resized


def resize_tf1(pixels: Bytes, side: int = INCEPTION_SIZE) -> Pixels:
    """TensorFlow 1's bilinear, as the first FID and `torchmetrics` up to 1.6 had it: no antialias, and pixel i of the
    result is read at i * H / side, so the image is shifted by up to half a pixel towards the upper left.
    """
    rows, row_next, row_share = _tf1_places(pixels.shape[0], side)
    columns, column_next, column_share = _tf1_places(pixels.shape[1], side)
    values = pixels.astype(np.float32)
    above, below = values[rows], values[row_next]
    share = column_share[None, :, None]
    top = above[:, columns] + (above[:, column_next] - above[:, columns]) * share
    bottom = below[:, columns] + (below[:, column_next] - below[:, columns]) * share
    resized: Pixels = top + (bottom - top) * row_share[:, None, None]
    return resized


def _tf1_places(length: int, side: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """For each of `side` places: the pixel before, the pixel after and the share of the latter."""
    exact = np.arange(side, dtype=np.float32) * np.float32(length / side)
    before = exact.astype(np.int64)
    return before, np.minimum(before + 1, length - 1), exact - before.astype(np.float32)


def imagenet(image: Image.Image) -> Tensor:
    """What DINO's evaluation feeds: shorter side 256 bicubic, centre crop 224, ImageNet's mean and deviation.

    The crop is taken from the whole resized image, not from its 256 square, which rounds differently. (3, 224, 224)
    """
    resized = image.resize(shorter_side(image.width, image.height, 256), Image.Resampling.BICUBIC)
    values = _channels_first(np.asarray(centre(resized, 224)))[0] / 255.0
    mean, deviation = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    return (values - mean) / deviation


def _channels_first(pixels: Bytes) -> Tensor:
    return torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
