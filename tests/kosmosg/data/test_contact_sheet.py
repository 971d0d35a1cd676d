"""A contact sheet shows every record or result that it was given, whole and sharp."""

import numpy as np
import pytest
from PIL import Image

from kosmosg import Prompt
from kosmosg.data.annotators.apply import apply
from kosmosg.data.composition import ComposeOptions, compose
from kosmosg.data.contact_sheet import CELL, SheetRow, contact_sheet, result_sheet, spread
from kosmosg.data.image_bytes import encode_image
from kosmosg.data.records import RECORD_KINDS, CompositionRecord
from kosmosg.data.sources.base import ReadyRow
from kosmosg.errors import DataError
from kosmosg.toyworld.annotators import ToyworldCaptioner, ToyworldEntityFinder, ToyworldSegmenter
from kosmosg.toyworld.source import EditReader, SceneReader


def composition_records(count: int) -> list[CompositionRecord]:
    reader = SceneReader(count)
    samples = list(reader.read(list(reader.items())))
    for sample, text in zip(samples, apply(ToyworldCaptioner(), samples, 100), strict=True):
        sample.caption = text
    for sample, found in zip(samples, ToyworldEntityFinder()(samples), strict=True):
        sample.spans = found.spans
    for sample, cuts in zip(samples, ToyworldSegmenter()(samples), strict=True):
        sample.cuts = cuts
    names = {"captioner": "c", "entity_finder": "e", "segmenter": "s"}
    return [compose(sample, ComposeOptions(), names) for sample in samples]


def test_every_image_is_on_the_sheet() -> None:
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
    records = [row.record for row in reader.read(list(reader.items())) if isinstance(row, ReadyRow)]
    sheet = contact_sheet(records, "edit", columns=2)
    assert isinstance(sheet, Image.Image)
    assert sheet.width > 4 * CELL


@pytest.mark.parametrize("kind", [name for name, kind in RECORD_KINDS.items() if kind.images and name != "composition"])
def test_every_kind_with_images_has_a_sheet(kind: str) -> None:
    red = encode_image(Image.new("RGB", (8, 8), "red"))
    fields = RECORD_KINDS[kind].images
    record = {"id": "a", "text": "b", "caption": "c", "instruction": "d"} | dict.fromkeys(fields, red)
    sheet = np.asarray(contact_sheet([record], kind))
    assert (sheet == (255, 0, 0)).all(axis=-1).sum() >= len(fields) * CELL * CELL


def test_what_has_no_images_has_no_sheet() -> None:
    with pytest.raises(DataError, match="no images"):
        contact_sheet([{"id": "a", "text": "b"}], "caption")
    with pytest.raises(DataError, match="no images"):
        contact_sheet([{"id": "a", "text": "b"}], "text")
    with pytest.raises(DataError, match="at least one"):
        contact_sheet([], "edit")


def test_a_spread_is_even_and_within_bounds() -> None:
    assert spread(3, 10) == [0, 1, 2]
    assert spread(100, 4) == [0, 25, 50, 75]
    assert spread(0, 4) == []


def plain(color: tuple[int, int, int], size: int = 8) -> Image.Image:
    return Image.new("RGB", (size, size), color)


def test_every_image_of_every_row_is_on_the_sheet_unblurred() -> None:
    references = [plain((200, 10, 10)), plain((10, 200, 10))]
    rows = [SheetRow(Prompt("<i> and <i> at sea", images=references), [plain((10, 10, 200 - i))]) for i in range(3)]
    pixels = np.asarray(result_sheet(rows, ["result"], tile=32)).reshape(-1, 3)
    colors, counts = np.unique(pixels, axis=0, return_counts=True)
    found = {tuple(color): count for color, count in zip(colors.tolist(), counts.tolist(), strict=True)}
    assert found[(200, 10, 10)] == found[(10, 200, 10)] == 3 * 32 * 32
    assert all(found[(10, 10, 200 - i)] == 32 * 32 for i in range(3))


def test_a_row_with_a_missing_image_is_refused() -> None:
    with pytest.raises(ValueError, match="every row needs 2 images"):
        result_sheet([SheetRow(Prompt("a ball"), [plain((1, 2, 3))])], ["before", "after"])
