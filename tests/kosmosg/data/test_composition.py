"""From masks to boxes and crops: the geometry holds for every mask, and what is left out has a name."""

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from kosmosg.data.annotators.base import EntityMask, Rejection, Sample, Span
from kosmosg.data.composition import ComposeOptions, compose, main_part, resize_mask, scaled, square_box, widen
from kosmosg.data.image_bytes import decode_image, decode_mask, encode_image
from kosmosg.errors import ConfigError

NAMES = {"captioner": "c", "entity_finder": "e", "segmenter": "s"}


@st.composite
def pictures_with_a_mask(draw: st.DrawFn) -> NDArray[np.bool_]:
    height, width = draw(st.integers(8, 60)), draw(st.integers(8, 60))
    mask = np.zeros((height, width), dtype=bool)
    for _ in range(draw(st.integers(1, 3))):
        y, x = draw(st.integers(0, height - 1)), draw(st.integers(0, width - 1))
        mask[y : y + draw(st.integers(1, 30)), x : x + draw(st.integers(1, 30))] = True
    return mask


@given(pictures_with_a_mask())
@settings(max_examples=200, deadline=None)
def test_a_box_is_square_inside_and_holds_the_mask_if_it_can(mask: NDArray[np.bool_]) -> None:
    height, width = mask.shape
    x0, y0, x1, y1 = square_box(mask)
    assert x1 - x0 == y1 - y0 > 0
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    needed = max(rows[-1] - rows[0], columns[-1] - columns[0]) + 1
    assert x1 - x0 == min(needed, height, width)
    if needed <= min(height, width):
        assert mask[y0:y1, x0:x1].sum() == mask.sum()


@given(pictures_with_a_mask(), st.floats(0.05, 1.0))
@settings(max_examples=100, deadline=None)
def test_a_scaled_box_stays_square_and_inside(mask: NDArray[np.bool_], scale: float) -> None:
    height, width = (max(1, round(side * scale)) for side in mask.shape)
    x0, y0, x1, y1 = scaled(square_box(mask), scale, width, height)
    assert x1 - x0 == y1 - y0 >= 1
    assert 0 <= x0 < x1 <= width
    assert 0 <= y0 < y1 <= height


def test_the_main_part_is_the_box_that_holds_most() -> None:
    mask = np.zeros((40, 40), dtype=bool)
    mask[2:8, 2:8] = True  # 36 pixels in one piece
    mask[20:38, 20] = mask[37, 20:38] = True  # an angle of 35 pixels ...
    mask[22:27, 25:30] = True  # ... whose box also holds this
    part = main_part(mask)
    assert part.sum() == 35 + 25
    assert not part[:10].any()


def test_widening_grows_by_a_part_of_the_side() -> None:
    mask = np.zeros((300, 300), dtype=bool)
    mask[150, 150] = True
    assert widen(mask, 0.01).sum() == 9
    assert widen(mask, 0.0).sum() == 1
    assert widen(mask[:100, :100], 0.01).sum() == 0


def test_a_resized_mask_keeps_its_share() -> None:
    mask = np.zeros((600, 600), dtype=bool)
    mask[100:400, 50:350] = True
    small = resize_mask(mask, (150, 150))
    assert small.shape == (150, 150)
    assert small.mean() == pytest.approx(mask.mean(), abs=0.01)


def photo(size: tuple[int, int] = (100, 80), boxes: Any = ((10, 20, 40, 60),), caption: str = "a cat") -> Sample:
    pixels = np.full((size[1], size[0], 3), 200, dtype=np.uint8)
    cuts = []
    for x0, y0, x1, y1 in boxes:
        pixels[y0:y1, x0:x1] = (250, 10, 10)
        probability = np.zeros((size[1], size[0]), dtype=np.uint8)
        probability[y0:y1, x0:x1] = 204
        cuts.append(EntityMask(probability))
    spans = [Span("cat", 2, 5)] * len(cuts)
    encoded = encode_image(Image.fromarray(pixels))
    return Sample("p", "p.jpg", encoded, "0" * 64, caption=caption, spans=spans, cuts=cuts)


def test_a_record_shows_its_entity() -> None:
    record = compose(photo(), ComposeOptions(dilate=0.0), NAMES)
    assert not isinstance(record, Rejection)
    (entity,) = record["entities"]
    assert entity["box"] == [5, 20, 45, 60]
    assert entity["score"] == pytest.approx(0.8)
    crop, mask = np.asarray(decode_image(entity["crop"])), decode_mask(entity["mask"])
    assert crop.shape == (40, 40, 3)
    assert mask.shape == (40, 40)
    assert (crop[mask] == (250, 10, 10)).all()
    assert (crop[~mask] == 200).all()
    assert (record["width"], record["height"]) == (100, 80)


def test_a_pair_stays_a_pair_when_the_segmenter_chose_it() -> None:
    for main_piece, width in ((True, 20), (False, 80)):
        pair = photo(boxes=[(10, 30, 30, 50)])
        pair.cuts[0].probability[30:50, 70:90] = 204
        record = compose(pair, ComposeOptions(dilate=0.0, main_piece=main_piece), NAMES)
        assert not isinstance(record, Rejection)
        x0, _, x1, _ = record["entities"][0]["box"]
        assert x1 - x0 == width


def test_large_pictures_are_stored_small_and_boxes_follow() -> None:
    options = ComposeOptions(image_size=50, crop_size=16, dilate=0.0, image_format="jpeg")
    record = compose(photo((400, 400), [(100, 100, 200, 200)]), options, NAMES)
    assert not isinstance(record, Rejection)
    assert (record["width"], record["height"]) == (50, 50)
    (entity,) = record["entities"]
    assert entity["box"] == [12, 12, 24, 24]
    assert decode_image(entity["crop"]).size == (16, 16)
    assert Image.open(io.BytesIO(record["image"])).format == "JPEG"


def test_entities_that_cannot_be_cut_are_left_out_by_name() -> None:
    one = photo(boxes=[(0, 0, 100, 80), (50, 50, 51, 51), (10, 20, 40, 60)])
    one.cuts.append(EntityMask(np.zeros((80, 100), dtype=np.uint8)))
    one.cuts.append(EntityMask(np.zeros((8, 10), dtype=np.uint8)))
    one.spans = one.spans[:1] * 5
    record = compose(one, ComposeOptions(dilate=0.0), NAMES)
    assert not isinstance(record, Rejection)
    assert len(record["entities"]) == 1
    assert one.dropped == ["whole-picture", "too-small", "empty-mask", "bad-mask"]


def test_nothing_left_is_a_refusal_that_says_why() -> None:
    answer = compose(photo(boxes=[(0, 0, 100, 80)]), ComposeOptions(), NAMES)
    assert isinstance(answer, Rejection)
    assert answer.reason == "no-entity"
    assert "whole-picture" in answer.message


@pytest.mark.parametrize("wrong", [{"image_format": "psd"}, {"threshold": 1.5}, {"crop_size": 2}])
def test_impossible_options_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"compose"):
        ComposeOptions(**wrong)
