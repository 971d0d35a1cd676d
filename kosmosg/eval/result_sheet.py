"""The contact sheet of results: reference images, prompt, images, one prompt a row.

A sheet is the quickest honest look at a model: rows are never selected, and every column holds the same prompts.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from kosmosg.prompt import Prompt

GAP = 10
INK, SOFT, PAPER, LINE = "#1c2430", "#5b6675", "#ffffff", "#dfe4ea"


@dataclass(frozen=True)
class SheetRow:
    """A prompt and the images that were drawn for it, in the order of the sheet's columns."""

    prompt: Prompt
    pictures: Sequence[Image.Image]


def result_sheet(
    rows: Sequence[SheetRow], columns: Sequence[str], tile: int = 96, text_width: int = 230
) -> Image.Image:
    """Lay the rows out as one image.

    Small images are enlarged without smoothing, so that pixel art stays sharp. `columns` names the images of a
    row; every row must have as many. Raises ValueError when one does not, or when there are no rows.
    """
    if not rows:
        raise ValueError("a sheet needs at least one row")
    if any(len(row.pictures) != len(columns) for row in rows):
        raise ValueError(f"every row needs {len(columns)} images, one for each of {list(columns)}")
    most = max((len(row.prompt.images) for row in rows), default=0)
    references_width = max(most * (tile + GAP), 120 if most else 0)
    result_width = max(tile, 112)
    width = GAP + references_width + text_width + len(columns) * (result_width + GAP) + GAP
    head = 34
    sheet = Image.new("RGB", (width, head + len(rows) * (tile + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    title, body = ImageFont.load_default(14), ImageFont.load_default(15)
    if most:
        draw.text((GAP, 9), "reference images", fill=SOFT, font=title)
    draw.text((GAP + references_width + 6, 9), "prompt", fill=SOFT, font=title)
    for index, name in enumerate(columns):
        draw.text((GAP + references_width + text_width + index * (result_width + GAP), 9), name, fill=SOFT, font=title)
    for number, row in enumerate(rows):
        top = head + number * (tile + GAP)
        draw.line((GAP, top - GAP // 2, width - GAP, top - GAP // 2), fill=LINE)
        for index, image in enumerate(row.prompt.images):
            sheet.paste(_fit(image, tile), (GAP + index * (tile + GAP), top))
        lines = textwrap.wrap(row.prompt.text, width=max(12, text_width // 8))[: max(1, tile // 20)]
        draw.multiline_text((GAP + references_width + 6, top + 4), "\n".join(lines), fill=INK, font=body, spacing=5)
        for index, picture in enumerate(row.pictures):
            left = GAP + references_width + text_width + index * (result_width + GAP)
            sheet.paste(_fit(picture, tile), (left, top))
    return sheet


def _fit(image: Image.Image, tile: int) -> Image.Image:
    """The image inside a white square of `tile` pixels, its proportions kept."""
    scale = tile / max(image.size)
    resample = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Image.new("RGB", (tile, tile), PAPER)
    square.paste(image.convert("RGB").resize(size, resample), ((tile - size[0]) // 2, (tile - size[1]) // 2))
    return square
