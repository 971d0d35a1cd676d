"""The perceptual hash: the same for copies of an image, far apart for different images, and silent about flat ones."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.image_hash import FLAT, HashedImage, hamming, hash_images, image_hash
from kosmosg.data.sources.base import RejectedRow
from kosmosg.prompt import read_image

SEEDS = range(20)


def scene(seed: int, width: int = 240, height: int = 180) -> Image.Image:
    """A smooth picture with some edges, as photos have them."""
    rng = np.random.default_rng(seed)
    rough = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    image = rough.resize((width, height), Image.Resampling.BICUBIC)
    for _ in range(6):
        x, y, size = rng.integers(0, width - 40), rng.integers(0, height - 40), int(rng.integers(20, 60))
        image.paste(tuple(int(v) for v in rng.integers(0, 256, 3)), (int(x), int(y), int(x) + size, int(y) + size))
    return image


def encoded(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    out = io.BytesIO()
    image.save(out, format=form, **options)
    return out.getvalue()


def distance(left: Image.Image, right: Image.Image) -> int:
    return (image_hash(left) ^ image_hash(right)).bit_count()


@pytest.mark.parametrize("seed", SEEDS)
def test_copies_of_an_image_are_near(seed: int) -> None:
    image = scene(seed)
    assert distance(image, Image.open(io.BytesIO(encoded(image, "JPEG", quality=60)))) <= 2
    assert distance(image, Image.open(io.BytesIO(encoded(image, "WEBP", quality=60)))) <= 2
    assert distance(image, image.resize((120, 90), Image.Resampling.LANCZOS)) <= 2
    assert distance(image, image.resize((500, 400), Image.Resampling.BICUBIC)) <= 2
    assert distance(image, image.convert("L")) <= 1


def test_different_images_are_far_apart() -> None:
    hashes = [image_hash(scene(seed)) for seed in SEEDS]
    between = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(between) > 8
    assert 28 < np.mean(between) < 36


@pytest.mark.parametrize("colour", ["black", "white", "red", (12, 200, 77)])
@pytest.mark.parametrize("size", [(1, 1), (32, 32), (300, 7)])
def test_an_image_without_structure_has_no_hash(colour: str, size: tuple[int, int]) -> None:
    assert image_hash(Image.new("RGB", size, colour)) == FLAT


def test_a_brighter_copy_without_clipping_has_the_same_hash() -> None:
    dark = scene(1).point([value // 2 for value in range(256)] * 3)
    assert distance(dark, dark.point([min(255, value + 60) for value in range(256)] * 3)) <= 1


def test_hashes_of_encoded_images_come_in_order_and_damage_costs_one_row() -> None:
    good = encoded(scene(0)), encoded(scene(1))
    given = [("a", good[0]), ("b", b"<html>not found</html>"), ("c", b""), ("d", good[1]), ("e", good[0][:200])]
    rows = list(hash_images(iter(given)))
    assert len(rows) == len(given)
    assert rows[0] == HashedImage("a", image_hash(scene(0)), hashlib.sha256(good[0]).digest())
    assert rows[3] == HashedImage("d", image_hash(scene(1)), hashlib.sha256(good[1]).digest())
    refused = [row.refusal for row in rows if isinstance(row, RejectedRow)]
    assert [(row["id"], row["reason"]) for row in refused] == [
        ("b", "unreadable"),
        ("c", "unreadable"),
        ("e", "unreadable"),
    ]


def test_the_distance_is_the_number_of_different_bits() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 2**64, (2, 100), dtype=np.uint64)
    expected = [bin(a ^ b).count("1") for a, b in zip(left.tolist(), right.tolist(), strict=True)]
    assert hamming(left, right).tolist() == expected
    assert hamming(left, right[0]).tolist() == [bin(a ^ int(right[0])).count("1") for a in left.tolist()]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_large_jpeg_is_hashed_from_a_fraction_of_its_pixels(seed: int) -> None:
    image = scene(seed).resize((1200, 900), Image.Resampling.BICUBIC)
    (row,) = hash_images([("a", encoded(image, "JPEG", quality=90))])
    assert isinstance(row, HashedImage)
    assert (row.hash ^ image_hash(image)).bit_count() <= 2


def test_real_photos_are_known_again_and_told_apart(shared_data: Path) -> None:
    """DreamBench, each photo read whole and from a fraction of its pixels, and as a small copy."""
    paths = sorted((shared_data / "data" / "dreambench").glob("*/*.jpg"))
    if not paths:
        pytest.skip("the photos of DreamBench are not here")
    rows = list(hash_images((path.parent.name, path.read_bytes()) for path in paths))
    hashes = [row.hash for row in rows if isinstance(row, HashedImage)]
    assert len(hashes) == len(paths) == 30
    for path, known in zip(paths, hashes, strict=True):
        image = read_image(path)
        assert (image_hash(image) ^ known).bit_count() <= 2
        image.thumbnail((256, 256))
        copy = Image.open(io.BytesIO(encoded(image, "JPEG", quality=50)))
        assert (image_hash(copy) ^ known).bit_count() <= 2
    assert min((a ^ b).bit_count() for row, a in enumerate(hashes) for b in hashes[:row]) > 10
