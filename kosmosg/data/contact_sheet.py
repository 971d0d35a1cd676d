"""Contact sheets: an overview of a dataset or of a model's results as one image.

`contact_sheet` shows records. A composition record is one line: its image with the entities' boxes, then for every
entity its crop and the crop on white, and the caption with the entities' words in its colour. Records of other kinds
show the images that `RECORD_KINDS` names, such as before and after of an edit, and their words.

`result_sheet` shows results: reference images, prompt and the images generated for it, one prompt per row. Rows are not
cherry-picked, and every column has the same prompts.
"""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from kosmosg.data.image_bytes import decode_image
from kosmosg.data.records import record_kind
from kosmosg.data.templates.instruct import entity_image
from kosmosg.errors import DataError
from kosmosg.prompt import Prompt

CELL = 144  # pixels of one image of a record
TILE = 96  # pixels of one image of a result
TEXT = 34  # pixels below the images of a record for two lines of text
HEAD = 34  # pixels above the results for the names of the columns
RECORD_GAP, RESULT_GAP = 8, 10
COLOURS = ("#d1242f", "#0969da", "#1a7f37", "#8250df", "#bf8700")  # one per entity: box, and words in the caption
SHOWN = 3  # entities of one record; more are counted
BLANK, QUIET = "#f6f8fa", "#656d76"  # of records: the ground of an image, the second line of text
INK, SOFT, PAPER, LINE = "#1c2430", "#5b6675", "#ffffff", "#dfe4ea"  # of results


@dataclass(frozen=True)
class SheetRow:
    """A prompt and the images that were generated for it, in the order of the sheet's columns."""

    prompt: Prompt
    images: Sequence[Image.Image]


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
    width, height = max(strip.width for strip in strips) + RECORD_GAP, strips[0].height + RECORD_GAP
    columns = min(columns, len(strips))
    rows = -(-len(strips) // columns)
    sheet = Image.new("RGB", (columns * width + RECORD_GAP, rows * height + RECORD_GAP), "white")
    for index, strip in enumerate(strips):
        # Down the columns, like a list.
        column, row = divmod(index, rows)
        sheet.paste(strip, (RECORD_GAP + column * width, RECORD_GAP + row * height))
    return sheet


def result_sheet(
    rows: Sequence[SheetRow], columns: Sequence[str], tile: int = TILE, text_width: int = 230
) -> Image.Image:
    """Results as one RGB image. `columns` names the images of a row; every row must have as many.

    Small images are enlarged without smoothing, so that pixel art stays sharp. Raises ValueError when a row has more
    or fewer images, or when there are no rows.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row")
    if any(len(row.images) != len(columns) for row in rows):
        raise ValueError(f"every row needs {len(columns)} images, one for each of {list(columns)}")
    gap, most = RESULT_GAP, max(len(row.prompt.images) for row in rows)
    words_left = gap + max(most * (tile + gap), 120 if most else 0)
    lefts = [words_left + text_width + index * (max(tile, 112) + gap) for index in range(len(columns) + 1)]
    sheet = Image.new("RGB", (lefts[-1] + gap, HEAD + len(rows) * (tile + gap) + gap), PAPER)
    draw = ImageDraw.Draw(sheet)
    title, body = ImageFont.load_default(14), ImageFont.load_default(15)
    heads = [(gap, "reference images")] if most else []
    for left, name in [*heads, (words_left + 6, "prompt"), *zip(lefts, columns, strict=False)]:
        draw.text((left, 9), name, fill=SOFT, font=title)
    for number, row in enumerate(rows):
        top = HEAD + number * (tile + gap)
        draw.line((gap, top - gap // 2, sheet.width - gap, top - gap // 2), fill=LINE)
        lines = textwrap.wrap(row.prompt.text, width=max(12, text_width // 8))[: max(1, tile // 20)]
        draw.multiline_text((words_left + 6, top + 4), "\n".join(lines), fill=INK, font=body, spacing=5)
        references = [gap + index * (tile + gap) for index in range(len(row.prompt.images))]
        for left, image in zip([*references, *lefts[:-1]], [*row.prompt.images, *row.images], strict=True):
            sheet.paste(_fitted(image, tile, PAPER, sharp_over=1.0, centred=True), (left, top))
    return sheet


def spread(total: int, count: int) -> list[int]:
    """At most `count` indices, spread evenly over `total` records, because the first ones may all be alike."""
    count = min(total, count)
    return [index * total // count for index in range(count)]


def _composition(record: Mapping[str, Any]) -> Image.Image:
    entities: Sequence[Mapping[str, Any]] = record["entities"]
    image = decode_image(record["image"])
    shown = _cell(image)
    draw = ImageDraw.Draw(shown)
    scale = CELL / max(image.size)
    for index, entity in enumerate(entities):
        box = [round(value * scale) for value in entity["box"]]
        colour = COLOURS[index % len(COLOURS)]
        draw.rectangle((box[0], box[1], max(box[2] - 1, box[0]), max(box[3] - 1, box[1])), outline=colour, width=2)
    cells = [shown]
    for entity in entities[:SHOWN]:
        cells += [_cell(entity_image(entity, masked=False)), _cell(entity_image(entity, masked=True))]
    cells += [_blank()] * (3 - len(cells))  # a record without entities is as wide as one with one
    strip = _strip(cells)
    words = [(entity["start"], entity["end"], COLOURS[i % len(COLOURS)]) for i, entity in enumerate(entities)]
    _write(strip, record["caption"], words, 0)
    more = f"  (+{len(entities) - SHOWN} more)" if len(entities) > SHOWN else ""
    _write(strip, f"{record['id']}{more}", [], 1, QUIET)
    return strip


def _images(record: Mapping[str, Any], fields: Sequence[str]) -> Image.Image:
    if not any(record.get(field) for field in fields):
        raise DataError(f"record {record.get('id')!r} has no images for a sheet")
    strip = _strip([_cell(decode_image(record[field])) if record.get(field) else _blank() for field in fields])
    lines = [record[name] for name in ("instruction", "caption", "text", "id") if record.get(name)]
    for number, line in enumerate(lines[:2]):
        _write(strip, line, [], number, QUIET if number else "black")
    return strip


def _fitted(image: Image.Image, side: int, ground: str, *, sharp_over: float, centred: bool) -> Image.Image:
    """The image inside a square of `side` pixels, its proportions kept.

    Enlarged by more than `sharp_over` it keeps its pixels, as pixel art should; otherwise it is filtered.
    """
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resample = Image.Resampling.NEAREST if scale > sharp_over else Image.Resampling.LANCZOS
    square = Image.new("RGB", (side, side), ground)
    place = ((side - size[0]) // 2, (side - size[1]) // 2) if centred else (0, 0)
    square.paste(image.convert("RGB").resize(size, resample), place)
    return square


def _cell(image: Image.Image) -> Image.Image:
    """An image of a record. At the top left, so that boxes only need scaling."""
    return _fitted(image, CELL, BLANK, sharp_over=2.0, centred=False)


def _blank() -> Image.Image:
    return Image.new("RGB", (CELL, CELL), BLANK)


def _strip(cells: Sequence[Image.Image]) -> Image.Image:
    width = CELL + RECORD_GAP
    strip = Image.new("RGB", (len(cells) * width - RECORD_GAP, CELL + TEXT), "white")
    for index, cell in enumerate(cells):
        strip.paste(cell, (index * width, 0))
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
