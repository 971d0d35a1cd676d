"""Which tokens stage 1 learns: the layouts of the public Kosmos readers."""

from typing import Any

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.image_bytes import encode_image, encode_mask
from kosmosg.data.templates.pretrain import IGNORED, PretrainTemplates, read_in_caption, read_in_document, shifted
from kosmosg.errors import ConfigError, DataError

IMAGE, END = 64003, 64004
BLOCK = [IMAGE, IMAGE, IMAGE, END]  # <image>, two slots, </image>


def image(red: int) -> bytes:
    return encode_image(Image.new("RGB", (4, 4), (red, 0, 0)))


def composition() -> dict[str, Any]:
    mask = encode_mask(np.ones((4, 4), dtype=bool))
    places = [("red ball", 2, 10), ("cat", 17, 20)]
    entities = [
        {"text": text, "start": start, "end": end, "crop": image(number), "mask": mask}
        for number, (text, start, end) in enumerate(places, start=1)
    ]
    return {"id": "a", "caption": "a red ball and a cat.", "image": image(9), "entities": entities}


def readable(parts: list[Any]) -> list[str | int]:
    return [part if isinstance(part, str) else part.getpixel((0, 0))[0] for part in parts]


def test_a_caption_is_learnt_from_the_end_of_its_image_on() -> None:
    ids = [0, *BLOCK, 10, 11, 2]
    inputs, labels = shifted(ids, read_in_caption(ids, END))
    assert inputs == [0, *BLOCK, 10, 11]
    assert labels == [IGNORED] * 4 + [10, 11, 2]


def test_a_caption_without_image_is_learnt_whole() -> None:
    ids = [0, 10, 11, 2]
    assert shifted(ids, read_in_caption(ids, END)) == ([0, 10, 11], [10, 11, 2])


def test_a_document_learns_that_a_image_comes_but_nothing_inside_it() -> None:
    ids = [0, 10, *BLOCK, 11, *BLOCK, 2]
    _, labels = shifted(ids, read_in_document(ids, IMAGE))
    assert labels == [10, IMAGE] + [IGNORED] * 3 + [11, IMAGE] + [IGNORED] * 3 + [2]
    assert END not in labels


def test_crops_stand_before_or_behind_their_words() -> None:
    before = PretrainTemplates(crop_first=1.0, whole_image=0.0).interleaved(composition(), lambda: 0.7)
    assert readable(before) == ["a ", 1, "red ball", " and a ", 2, "cat", "."]
    behind = PretrainTemplates(crop_first=0.0, whole_image=0.0).interleaved(composition(), lambda: 0.7)
    assert readable(behind) == ["a red ball", 1, " and a cat", 2, "."]


def test_a_composition_may_become_its_whole_image() -> None:
    parts = PretrainTemplates(whole_image=1.0).interleaved(composition(), lambda: 0.7)
    assert readable(parts) == [9, "a red ball and a cat."]


def test_crops_lose_their_background_by_chance() -> None:
    record = composition()
    record["entities"][0]["mask"] = encode_mask(np.zeros((4, 4), dtype=bool))
    kept = PretrainTemplates(whole_image=0.0, mask_background=0.0).interleaved(record, lambda: 0.7)
    cut = PretrainTemplates(whole_image=0.0, mask_background=1.0).interleaved(record, lambda: 0.7)
    assert 1 in readable(kept)
    assert 255 in readable(cut)


def test_a_document_keeps_its_first_images() -> None:
    parts = [{"text": "one", "image": None}, *({"text": None, "image": image(n)} for n in (1, 2, 3))]
    document = {"id": "d", "parts": [*parts, {"text": "end", "image": None}]}
    assert readable(PretrainTemplates(max_images=2).interleaved(document, lambda: 0.0)) == ["one", 1, 2, "end"]


def test_what_cannot_be_interleaved_is_named() -> None:
    with pytest.raises(DataError, match="'t'"):
        PretrainTemplates().interleaved({"id": "t", "text": "words"}, lambda: 0.0)
    with pytest.raises(ConfigError, match="max_images is 0"):
        PretrainTemplates(max_images=0)
    with pytest.raises(ConfigError, match="documents_per_row is 0"):
        PretrainTemplates(documents_per_row=0)
