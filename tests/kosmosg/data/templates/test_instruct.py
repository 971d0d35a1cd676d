"""Prompts are made from records as the original made them: its recorded sequences, and our rule where it skips."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.image_bytes import encode_image, encode_mask
from kosmosg.data.templates.instruct import InstructTemplates, entity_image, record_image, split_at_spans
from kosmosg.data.templates.pretrain import read_in_document
from kosmosg.errors import ConfigError, DataError
from kosmosg.processor import KosmosGProcessor

CASES = json.loads((Path(__file__).parents[3] / "golden" / "kosmosg_data_templates.json").read_text())
COMPOSITIONS = [case for case in CASES if case["kind"] == "openimage"]
SIDE = 8


@pytest.fixture(scope="module")
def released(shared_data: Path) -> KosmosGProcessor:
    return KosmosGProcessor.from_sentencepiece(shared_data / "data" / "tokenizer" / "sentencepiece.bpe.model")


def image(colour: tuple[int, int, int]) -> bytes:
    return encode_image(Image.new("RGB", (SIDE, SIDE), colour))


def entity(number: int, text: str, start: int = 0, end: int = 1) -> dict[str, Any]:
    """Entity `number` from 0 on, one colour all over; its mask leaves out the last row."""
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[-1] = False
    return {
        "text": text,
        "start": start,
        "end": end,
        "crop": image((number + 1, 1, 0)),
        "mask": encode_mask(mask),
    }


def composition(case: dict[str, Any]) -> dict[str, Any]:
    """What our dataset builder stores: the entities that the original finds, with their places."""
    tags, entities = case["tags"].split(","), []
    for red, _, _ in case["image_pixels"][:-1]:
        text = tags[red - 1]
        start = case["caption"].find(text)
        entities.append(entity(red - 1, text, start, start + len(text)))
    return {"caption": case["caption"], "image": image((200, 200, 200)), "entities": entities}


def played(numbers: list[float]) -> Callable[[], float]:
    return iter(numbers).__next__


def shown(image: Image.Image) -> tuple[int, bool]:
    """Which entity an image shows, and whether its background is gone."""
    red, green, _ = image.getpixel((0, 0))
    assert green == 1
    return red - 1, image.getpixel((0, SIDE - 1)) == (255, 255, 255)


@pytest.mark.parametrize("case", COMPOSITIONS, ids=lambda case: f"{case['caption']}|{case['tags']}")
def test_the_original_shows_these_entities_in_this_order(case: dict[str, Any]) -> None:
    example = InstructTemplates().composition(composition(case), played(case["random_draws"]))
    images = [shown(part) for part in example.parts if not isinstance(part, str)]
    assert images == [(red - 1, kind == 2) for red, kind, _ in case["image_pixels"][:-1]]
    assert example.target.getpixel((0, 0)) == (200, 200, 200)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}|{case.get('caption', case.get('edit'))}")
def test_tokens_and_masks_are_the_recorded_ones(case: dict[str, Any], released: KosmosGProcessor) -> None:
    templates = InstructTemplates()
    if case["kind"] == "instructpix2pix":
        record = {"caption": case["input"], "instruction": case["edit"], "before": image((3, 0, 0))}
        example = templates.edit(record | {"after": image((4, 0, 0))}, played([0.1 if case["drop_caption"] else 0.9]))
        assert [image.getpixel((0, 0)) for image in (example.parts[-2], example.target)] == [(3, 0, 0), (4, 0, 0)]
    else:
        example = templates.composition(composition(case), played(case["random_draws"]))
    ids, slots, _ = released.sequence(example.parts, eos=True)
    assert ids == case["tokens"]
    assert [place for place, slot in enumerate(slots) if slot] == case["input_mask_true"]
    assert read_in_document(ids, released.image_id) == [bool(mask) for mask in case["loss_mask"]]


def test_where_the_original_skips_our_rule_shows_the_entity_alone() -> None:
    assert split_at_spans("cat on a mat", [(0, 3)], [True]) == [0, " on a mat"]


def test_overlapping_spans_stay_text_and_bad_spans_are_named() -> None:
    caption = "a hot dog sits"
    assert split_at_spans(caption, [(2, 9), (6, 9)], [False, False]) == ["a hot dog", 0, " sits"]
    with pytest.raises(DataError, match=r"\[2, 99\).*14 characters"):
        split_at_spans(caption, [(2, 99)], [False])


def test_entities_may_drop_one_by_one() -> None:
    record = {
        "caption": "a cat and a dog",
        "image": image((9, 9, 9)),
        "entities": [entity(0, "cat", 2, 5), entity(1, "dog", 12, 15)],
    }
    templates = InstructTemplates(drop_scope="entity")
    example = templates.composition(record, played([0.1, 0.9, 0.1, 0.9]))
    texts = [part for part in example.parts if isinstance(part, str)]
    images = [shown(part) for part in example.parts if not isinstance(part, str)]
    assert texts == ["a ", " and a dog"]
    assert images == [(0, True), (1, False)]


def test_text_to_image_shows_no_image() -> None:
    record = {"caption": "a cat", "image": image((5, 5, 5)), "entities": [entity(0, "cat", 2, 5)]}
    example = InstructTemplates().t2i(record, played([]))
    assert example.parts == ["a cat"]
    assert example.target.getpixel((0, 0)) == (5, 5, 5)


def test_bad_records_and_settings_are_named() -> None:
    with pytest.raises(DataError, match="no image"):
        InstructTemplates().t2i({"id": "7", "text": "a cat", "image": None}, played([])).target  # noqa: B018
    with pytest.raises(DataError, match="cannot be decoded"):
        InstructTemplates().t2i({"id": "7", "text": "a cat", "image": b"not an image"}, played([])).target  # noqa: B018
    with pytest.raises(ConfigError, match=r"drop_entity_text is 1\.5"):
        InstructTemplates(drop_entity_text=1.5)
    wrong = entity(0, "cat", 2, 5) | {"mask": encode_mask(np.ones((2, 2), dtype=bool))}
    with pytest.raises(DataError, match=r"\(2, 2\).*\(8, 8\)"):
        InstructTemplates().composition(
            {"caption": "a cat", "image": image((1, 1, 1)), "entities": [wrong]}, played([0.9, 0.1])
        )


@pytest.mark.parametrize(("side", "at_least", "found"), [(512, 224, 256), (512, 300, 512), (101, 50, 51), (96, 12, 12)])
def test_images_of_a_prompt_may_come_smaller_with_their_masks(side: int, at_least: int, found: int) -> None:
    """The left half of a picture whose right half is background, from a decoder that scales, and in the usual way."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[:, : side // 2] = np.linspace(0, 200, side, dtype=np.uint8)[:, None, None]
    pixels[:, side // 2 :] = (30, 160, 90)
    cut = np.arange(side)[None, :].repeat(side, 0) < side // 2
    crop = encode_image(Image.fromarray(pixels), "jpeg")
    record = {"crop": crop, "mask": encode_mask(cut), "text": "cat"}
    whole = entity_image(record, True)
    small = entity_image(record, True, at_least)
    assert whole.size == (side, side)
    assert small.size == (found, found)
    difference = np.asarray(whole.resize(small.size, Image.Resampling.BOX), int) - np.asarray(small, int)
    edge = found // 2
    assert np.abs(np.delete(difference, [edge - 1, edge, min(edge + 1, found - 1)], axis=1)).max() <= 12
    with pytest.raises(DataError, match="must be equal"):
        entity_image(record | {"mask": encode_mask(cut[: side // 3])}, True, at_least)


def test_an_image_that_is_read_has_the_pixels_of_its_file() -> None:
    """Whatever the mode it was saved in: nothing is copied on the way where it is RGB."""
    rng = np.random.default_rng(0)
    for mode in ("RGB", "L", "1"):
        made = Image.fromarray(rng.integers(0, 256, (20, 30, 3), np.uint8)).convert(mode)
        out = io.BytesIO()
        made.save(out, "PNG")
        read = record_image(out.getvalue(), "image")
        assert read.mode == "RGB"
        assert (np.asarray(read) == np.asarray(made.convert("RGB"))).all()
