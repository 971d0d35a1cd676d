"""A contact sheet shows every record it was given."""

import numpy as np
import pytest
from PIL import Image

from kosmosg.data.annotators.apply import apply
from kosmosg.data.composition import ComposeOptions, compose
from kosmosg.data.contact_sheet import CELL, contact_sheet, spread
from kosmosg.data.records import CompositionRecord
from kosmosg.data.sources.base import ReadyRow
from kosmosg.errors import DataError
from kosmosg.toyworld.annotators import ToyworldCaptioner, ToyworldEntityFinder, ToyworldSegmenter
from kosmosg.toyworld.source import EditReader, SceneReader


def composition_records(count: int) -> list[CompositionRecord]:
    reader = SceneReader(count)
    samples = [row for work in reader.plan(None) for row in reader.read(work)]
    for sample, text in zip(samples, apply(ToyworldCaptioner(), samples, 100), strict=True):
        sample.caption = text
    for sample, found in zip(samples, ToyworldEntityFinder()(samples), strict=True):
        sample.spans = found.spans
    for sample, cuts in zip(samples, ToyworldSegmenter()(samples), strict=True):
        sample.cuts = cuts
    names = {"captioner": "c", "entity_finder": "e", "segmenter": "s"}
    return [compose(sample, ComposeOptions(), names) for sample in samples]


def test_every_picture_is_on_the_sheet() -> None:
    records = composition_records(5)
    sheet = contact_sheet(records, "composition")
    assert sheet.mode == "RGB"
    assert sheet.width > 2 * 3 * CELL
    pixels = np.asarray(sheet)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 30
    single = contact_sheet(records[:1], "composition")
    assert single.height < sheet.height


def test_edits_show_before_and_after() -> None:
    reader = EditReader(4)
    records = [row.record for work in reader.plan(None) for row in reader.read(work) if isinstance(row, ReadyRow)]
    sheet = contact_sheet(records, "edit", columns=2)
    assert isinstance(sheet, Image.Image)
    assert sheet.width > 4 * CELL


def test_what_has_no_pictures_has_no_sheet() -> None:
    with pytest.raises(DataError, match="no images"):
        contact_sheet([{"id": "a", "text": "b"}], "caption")
    with pytest.raises(DataError, match="at least one"):
        contact_sheet([], "edit")


def test_a_spread_is_even_and_within_bounds() -> None:
    assert spread(3, 10) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]
    assert spread(0, 4) == []
