"""A contact sheet of records: what a dataset looks like, at a glance, without any tool.

A composition record is one line: its image with the entities' boxes, then for every entity its crop and the crop on
white, and the caption with the entities' words in its colour. Records of other kinds show the images that
`RECORD_KINDS` names, such as before and after of an edit, and their words.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from kosmosg.data.image_bytes import decode_image
from kosmosg.data.records import record_kind
from kosmosg.data.templates.instruct import entity_image
from kosmosg.errors import DataError

CELL = 144  # pixels of one image on the sheet
GAP = 8
TEXT = 34  # pixels below the images for two lines of text
COLOURS = ("#d1242f", "#0969da", "#1a7f37", "#8250df", "#bf8700")  # one per entity: box, and words in the caption
SHOWN = 3  # entities of one record; more are counted


def contact_sheet(records: Iterable[Mapping[str, Any]], kind: str, columns: int = 2) -> Image.Image:
    """All given records on one RGB image, in order, `columns` next to each other.

    Raises DataError for kinds and records that have no images.
    """
    fields = record_kind(kind).images
    if not fields:
        raise DataError(f"records of kind {kind!r} have no images for a sheet")
    strips = [_composition(record) if kind == "composition" else _images(record, fields) for record in records]
    if not strips:
        raise DataError("a contact sheet needs at least one record")
    width, height = max(strip.width for strip in strips), strips[0].height
    columns = min(columns, len(strips))
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) + GAP, rows * (height + GAP) + GAP), "white")
    for index, strip in enumerate(strips):
        # Down the columns, as one reads a list.
        column, row = divmod(index, rows)
        sheet.paste(strip, (GAP + column * (width + GAP), GAP + row * (height + GAP)))
    return sheet


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices, evenly over `total` records: the first ones alone would all be of one kind."""
    count = min(total, count)
    return [index * total // count for index in range(count)]


def _composition(record: Mapping[str, Any]) -> Image.Image:
    entities: Sequence[Mapping[str, Any]] = record["entities"]
    image = decode_image(record["image"])
    shown = _cell(image)
    draw = ImageDraw.Draw(shown)
    scale = min(CELL / image.width, CELL / image.height)
    for index, entity in enumerate(entities):
        box = [round(value * scale) for value in entity["box"]]
        colour = COLOURS[index % len(COLOURS)]
        draw.rectangle((box[0], box[1], max(box[2] - 1, box[0]), max(box[3] - 1, box[1])), outline=colour, width=2)
    cells = [shown]
    for entity in entities[:SHOWN]:
        cells += [_cell(entity_image(entity, masked=False)), _cell(entity_image(entity, masked=True))]
    cells += [Image.new("RGB", (CELL, CELL), "#f6f8fa")] * (1 + 2 * min(SHOWN, 1) - len(cells))
    strip = _strip(cells)
    words = [(entity["start"], entity["end"], COLOURS[i % len(COLOURS)]) for i, entity in enumerate(entities)]
    _write(strip, record["caption"], words, 0)
    more = f"  (+{len(entities) - SHOWN} more)" if len(entities) > SHOWN else ""
    _write(strip, f"{record['id']}{more}", [], 1, "#656d76")
    return strip


def _images(record: Mapping[str, Any], fields: Sequence[str]) -> Image.Image:
    if not any(record.get(field) for field in fields):
        raise DataError(f"record {record.get('id')!r} has no images for a sheet")
    blank = Image.new("RGB", (CELL, CELL), "#f6f8fa")
    strip = _strip([_cell(decode_image(record[field])) if record.get(field) else blank for field in fields])
    lines = [record[name] for name in ("instruction", "caption", "text", "id") if record.get(name)]
    for number, line in enumerate(lines[:2]):
        _write(strip, line, [], number, "#656d76" if number else "black")
    return strip


def _cell(image: Image.Image) -> Image.Image:
    scale = min(CELL / image.width, CELL / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    # Enlarged pixel art keeps its pixels; a photo that shrinks is filtered.
    resample = Image.Resampling.NEAREST if scale > 2 else Image.Resampling.LANCZOS
    cell = Image.new("RGB", (CELL, CELL), "#f6f8fa")
    cell.paste(image.resize(size, resample), (0, 0))
    return cell


def _strip(cells: Sequence[Image.Image]) -> Image.Image:
    strip = Image.new("RGB", (len(cells) * (CELL + GAP) - GAP, CELL + TEXT), "white")
    for index, cell in enumerate(cells):
        strip.paste(cell, (index * (CELL + GAP), 0))
    return strip


def _write(
    strip: Image.Image, text: str, words: Sequence[tuple[int, int, str]], line: int, colour: str = "black"
) -> None:
    """One line of text below the images, cut where the strip ends; `words` are character ranges in colour."""
    font = ImageFont.load_default(size=13)
    draw = ImageDraw.Draw(strip)
    x, y = 0.0, CELL + 2 + line * 16
    for position, character in enumerate(text):
        mark = next((c for start, end, c in words if start <= position < end), colour)
        x_next = draw.textlength(text[: position + 1], font=font)
        if x_next > strip.width:
            break
        draw.text((x, y), character, fill=mark, font=font)
        x = x_next
