"""Prompts are made from records as the original made them: its recorded sequences, its skips, and our own rule."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.image_bytes import encode_image, encode_mask
from kosmosg.data.templates.instruct import InstructTemplates, split_at_spans, split_at_tags
from kosmosg.data.templates.pretrain import read_in_document
from kosmosg.errors import ConfigError, DataError
from kosmosg.processor import KosmosGProcessor

CASES = json.loads((Path(__file__).parents[3] / "golden" / "kosmosg_data_templates.json").read_text())
COMPOSITIONS = [case for case in CASES if case["kind"] == "openimage"]
SIDE = 8


@pytest.fixture(scope="module")
def released(shared_data: Path) -> KosmosGProcessor:
    return KosmosGProcessor.from_sentencepiece(shared_data / "data" / "tokenizer" / "sentencepiece.bpe.model")


def picture(colour: tuple[int, int, int]) -> bytes:
    return encode_image(Image.new("RGB", (SIDE, SIDE), colour))


def entity(number: int, text: str, start: int = 0, end: int = 1) -> dict[str, Any]:
    """Entity `number` from 0 on, one colour all over; its mask leaves out the last row."""
    mask = np.ones((SIDE, SIDE), dtype=bool)
    mask[-1] = False
    return {
        "text": text,
        "start": start,
        "end": end,
        "crop": picture((number + 1, 1, 0)),
        "mask": encode_mask(mask),
    }


def composition(case: dict[str, Any]) -> dict[str, Any]:
    tags = case["tags"].split(",")
    entities = [entity(number, tag) for number, tag in enumerate(tags)]
    return {"caption": case["caption"], "image": picture((200, 200, 200)), "entities": entities}


def played(numbers: list[float]) -> Callable[[], float]:
    return iter(numbers).__next__


def shown(image: Image.Image) -> tuple[int, bool]:
    """Which entity an image shows, and whether its background is gone."""
    red, green, _ = image.getpixel((0, 0))
    assert green == 1
    return red - 1, image.getpixel((0, SIDE - 1)) == (255, 255, 255)


@pytest.mark.parametrize("case", COMPOSITIONS, ids=lambda case: f"{case['caption']}|{case['tags']}")
def test_the_original_shows_these_entities_in_this_order(case: dict[str, Any]) -> None:
    example = InstructTemplates(rule="tags").composition(composition(case), played(case["random_draws"]))
    pictures = [shown(part) for part in example.parts if not isinstance(part, str)]
    assert pictures == [(red - 1, kind == 2) for red, kind, _ in case["image_pixels"][:-1]]
    assert example.target.getpixel((0, 0)) == (200, 200, 200)


@pytest.mark.parametrize("rule", ["tags", "spans"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}|{case.get('caption', case.get('edit'))}")
def test_tokens_and_masks_are_the_recorded_ones(case: dict[str, Any], rule: Any, released: KosmosGProcessor) -> None:
    templates = InstructTemplates(rule=rule)
    if case["kind"] == "instructpix2pix":
        record = {"caption": case["input"], "instruction": case["edit"], "before": picture((3, 0, 0))}
        example = templates.edit(record | {"after": picture((4, 0, 0))}, played([0.1 if case["drop_caption"] else 0.9]))
        assert [image.getpixel((0, 0)) for image in (example.parts[-2], example.target)] == [(3, 0, 0), (4, 0, 0)]
    else:
        record = composition(case)
        if rule == "spans":
            # What our dataset builder stores: the entities that the original would find, with their places.
            kept = split_at_tags(case["caption"], case["tags"].split(","), drop_text=False) or []
            found = [record["entities"][piece] for piece in kept if isinstance(piece, int)]
            for one in found:
                one["start"] = case["caption"].find(one["text"])
                one["end"] = one["start"] + len(one["text"])
            record["entities"] = found
        example = templates.composition(record, played(case["random_draws"]))
    ids, slots, _ = released.sequence(example.parts, eos=True)
    assert ids == case["tokens"]
    assert [place for place, slot in enumerate(slots) if slot] == case["input_mask_true"]
    assert read_in_document(ids, released.image_id) == [bool(mask) for mask in case["loss_mask"]]


def test_the_original_skips_an_entity_that_opens_the_caption() -> None:
    assert split_at_tags("cat on a mat", ["cat"], drop_text=True) is None
    assert split_at_tags("cat on a mat", ["cat"], drop_text=False) == ["cat", 0, " on a mat"]


def test_where_the_original_skips_our_rule_shows_the_entity_alone() -> None:
    assert split_at_spans("cat on a mat", [(0, 3)], [True]) == [0, " on a mat"]


def test_a_skipped_sample_keeps_its_words_under_the_original_rule() -> None:
    record = {"caption": "cat on a mat", "image": picture((9, 9, 9)), "entities": [entity(0, "cat")]}
    example = InstructTemplates(rule="tags").composition(record, played([0.1, 0.9]))
    assert [part for part in example.parts if isinstance(part, str)] == ["cat", " on a mat"]


@pytest.mark.parametrize(
    ("caption", "tags", "expected"),
    [
        ("a red car", ["red"], ["a red car"]),  # colours are no things
        ("a Red car", ["Red"], ["a Red", 0, " car"]),  # but only as the list writes them
        ("a hot dog", ["dog", "hot dog"], ["a hot dog", 1]),  # a part of another tag is refused
        ("two cats, three dogs", ["cat"], ["two cats, three dogs"]),  # a tag is a whole word
        ("a CAT sits", ["cat"], ["a CAT", 0, " sits"]),
        ("the cat's tail", ["cat"], ["the cat's", 0, " tail"]),  # the suffix belongs to the entity
        ("a cat (dog) (both)", ["dog"], ["a cat (dog", 0, ") (both)"]),
        ("a blue car and a car", ["blue car", "car"], ["a blue car", 0, " and a car"]),  # "car" is part of "blue car"
        ("nothing here", ["piano"], ["nothing here"]),
        ("a cat", [""], ["a cat"]),
    ],
)
def test_tag_rules(caption: str, tags: list[str], expected: list[str | int]) -> None:
    assert split_at_tags(caption, tags, drop_text=False) == expected


def test_a_tag_that_is_no_regular_expression_skips_the_sample() -> None:
    assert split_at_tags("a(cat sits", ["(cat"], drop_text=False) is None


def test_a_tag_left_behind_by_the_walk_is_forgotten() -> None:
    # The word runs on to the next blank, over the comma-less "/dog", which is then no longer in the rest.
    assert split_at_tags("a cat/dog sits", ["cat", "dog"], drop_text=False) == ["a cat/dog", 0, " sits"]


def test_overlapping_spans_stay_text_and_bad_spans_are_named() -> None:
    caption = "a hot dog sits"
    assert split_at_spans(caption, [(2, 9), (6, 9)], [False, False]) == ["a hot dog", 0, " sits"]
    with pytest.raises(DataError, match=r"\[2, 99\).*14 characters"):
        split_at_spans(caption, [(2, 99)], [False])


def test_entities_may_drop_one_by_one() -> None:
    record = {
        "caption": "a cat and a dog",
        "image": picture((9, 9, 9)),
        "entities": [entity(0, "cat", 2, 5), entity(1, "dog", 12, 15)],
    }
    templates = InstructTemplates(drop_scope="entity")
    example = templates.composition(record, played([0.1, 0.9, 0.1, 0.9]))
    texts = [part for part in example.parts if isinstance(part, str)]
    pictures = [shown(part) for part in example.parts if not isinstance(part, str)]
    assert texts == ["a ", " and a dog"]
    assert pictures == [(0, True), (1, False)]


def test_text_to_image_shows_no_picture() -> None:
    record = {"caption": "a cat", "image": picture((5, 5, 5)), "entities": [entity(0, "cat", 2, 5)]}
    example = InstructTemplates().t2i(record, played([]))
    assert example.parts == ["a cat"]
    assert example.target.getpixel((0, 0)) == (5, 5, 5)


def test_bad_records_and_settings_are_named() -> None:
    with pytest.raises(DataError, match="no image"):
        InstructTemplates().t2i({"id": "7", "text": "a cat", "image": None}, played([]))
    with pytest.raises(DataError, match="cannot be decoded"):
        InstructTemplates().t2i({"id": "7", "text": "a cat", "image": b"not a picture"}, played([]))
    with pytest.raises(ConfigError, match=r"drop_entity_text is 1\.5"):
        InstructTemplates(drop_entity_text=1.5)
    with pytest.raises(ConfigError, match="per sample"):
        InstructTemplates(rule="tags", drop_scope="entity")
    wrong = entity(0, "cat", 2, 5) | {"mask": encode_mask(np.ones((2, 2), dtype=bool))}
    with pytest.raises(DataError, match=r"\(2, 2\).*\(8, 8\)"):
        InstructTemplates().composition(
            {"caption": "a cat", "image": picture((1, 1, 1)), "entities": [wrong]}, played([0.9, 0.1])
        )
