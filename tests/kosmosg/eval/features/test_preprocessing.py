"""Resizings against the values that the libraries themselves gave, recorded from torch-fidelity 0.4.0 and clean-fid
0.1.35, and against the libraries where they are installed."""

import numpy as np
import pytest
import torch
from PIL import Image

from kosmosg.eval.features.preprocessing import (
    centre_start,
    crop_square,
    crop_square_plain,
    imagenet,
    resize_clean,
    resize_tf1,
    shorter_side,
)


def pattern(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([(3 * x + y) % 256, (5 * y + x * x) % 256, (x * y) % 256], -1).astype(np.uint8)


def test_tf1_gives_what_torch_fidelity_gave() -> None:
    resized = resize_tf1(pattern(40, 64))
    found = [resized[place] for place in ((0, 0, 0), (10, 200, 1), (150, 149, 2), (298, 298, 0))]
    assert found == pytest.approx([0.0, 96.28765869140625, 127.9928207397461, 228.0], abs=1e-4)


def test_clean_gives_what_clean_fid_gave() -> None:
    x, y = np.mgrid[:700, :500]
    large = np.stack([(3 * x + y) % 256, ((x * y) // 7) % 256, (x + 2 * y) % 256], -1).astype(np.uint8)
    resized = resize_clean(large)
    found = [resized[place] for place in ((0, 0, 0), (10, 200, 1), (150, 149, 2), (298, 298, 0))]
    expected = [2.5200753211975098, 128.23825073242188, 82.83768463134766, 33.47992706298828]
    assert found == pytest.approx(expected, abs=1e-3)


def test_clean_equals_clean_fid_where_it_is_installed() -> None:
    resize = pytest.importorskip("cleanfid.resize")
    picture = pattern(300, 411)
    assert np.abs(resize.build_resizer("clean")(picture) - resize_clean(picture)).max() < 1e-3


def test_only_clean_averages_over_what_it_leaves_out() -> None:
    """A board of single pixels is grey from afar; without antialias it is not. That is the fault clean-fid mends."""
    board = np.repeat((np.indices((1196, 1196)).sum(0) % 2 * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    assert resize_clean(board).std() < 1
    assert resize_tf1(board).mean() < 1, "every fourth pixel, all of them black"


def test_both_leave_a_picture_of_their_size_as_it_is() -> None:
    picture = pattern(299, 299)
    assert np.array_equal(resize_clean(picture), picture)
    assert np.array_equal(resize_tf1(picture), picture)


def test_crop_follows_torchvisions_rounding() -> None:
    """`Resize` rounds the longer side down, `CenterCrop` rounds halves to even (torchvision 0.15 to 0.29)."""
    assert shorter_side(640, 427, 256) == (383, 256)
    assert shorter_side(427, 640, 256) == (256, 383)
    assert shorter_side(500, 500, 256) == (256, 256)
    assert [centre_start(length, 224) for length in (341, 343, 256)] == [58, 60, 16]


def test_plain_crop_equals_interpolation_without_antialias() -> None:
    picture = pattern(427, 640)
    tensor = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255.0
    scaled = torch.nn.functional.interpolate(tensor, (256, 383), mode="bilinear", align_corners=False)
    start = round((383 - 256) / 2)
    expected = (scaled[0, :, :, start : start + 256] * 255).byte().permute(1, 2, 0).numpy()
    assert np.array_equal(crop_square_plain(picture, 256), expected)
    smooth = np.asarray(crop_square(Image.fromarray(picture), 256))
    assert smooth.shape == expected.shape == (256, 256, 3)
    assert smooth.std() < expected.std(), "the antialiased one is smoother"


def test_imagenet_equals_the_processor_of_transformers() -> None:
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil(
        size={"shortest_edge": 256},
        crop_size=224,
        resample=Image.Resampling.BICUBIC,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )
    for size in ((300, 300), (300, 450), (128, 160)):  # their crop rounds down: even differences only
        image = Image.fromarray(pattern(*size))
        expected = torch.as_tensor(theirs(images=image, return_tensors="pt")["pixel_values"][0])
        assert (imagenet(image) - expected).abs().max() < 1e-5
