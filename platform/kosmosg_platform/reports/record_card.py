"""A record as a card of a report: its words with the entities marked, its images with boxes, crops and cut-outs."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from kosmosg.data.contact_sheet import COLOURS
from kosmosg.data.templates.instruct import entity_image, record_image
from kosmosg.errors import DataError
from kosmosg_platform.reports.page import Card, Figure

IMAGE = 320  # longest side of an image in pixels
CROP = 128  # of a crop
ENTITIES = 6  # of a record that are shown; more are counted
PARTS = 8  # images of an interleaved record that are shown
CHARACTERS = 1200  # of a text
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that would turn around the text behind them."""
TEXTS = ("instruction", "caption", "text")


def clean(text: str, longest: int = CHARACTERS) -> str:
    """Text as a page can show it: without control characters, and cut where it is very long."""
    cut = text if len(text) <= longest else f"{text[:longest]} … ({len(text):,} characters)"
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", cut)


def record_card(record: Mapping[str, Any], images: Sequence[str]) -> Card:
    """A record of any kind with what it has; `images` are the fields that hold a whole image."""
    entities: Sequence[Mapping[str, Any]] = record.get("entities") or ()
    notes = list(_notes(record))
    if entities:
        text = marked(record["caption"], entities)
        figures = [*_whole(record, images, entities), *_cut_out(entities[:ENTITIES])]
        if len(entities) > ENTITIES:
            notes.insert(0, f"{len(entities) - ENTITIES} more entities are not shown")
    elif "parts" in record:
        text, figures = _interleaved(record["parts"])
    else:
        words = [clean(record[name]) for name in TEXTS if record.get(name)]
        text, figures = [("\n".join(words), "")] if words else [], list(_whole(record, images))
    return Card(clean(record["id"]), text, figures, notes)


def marked(caption: str, entities: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The caption in pieces, each with the colour of its entity; a word of two entities has the first one's."""
    pieces: list[tuple[str, str]] = []
    cursor = 0
    order = sorted(range(len(entities)), key=lambda number: (entities[number]["start"], number))
    for number in order:
        start, end = max(entities[number]["start"], cursor), min(entities[number]["end"], len(caption))
        if start >= end:
            continue
        pieces += [(caption[cursor:start], ""), (caption[start:end], COLOURS[number % len(COLOURS)])]
        cursor = end
    pieces.append((caption[cursor:], ""))
    return [(clean(words), colour) for words, colour in pieces if words]


def _whole(
    record: Mapping[str, Any], images: Sequence[str], entities: Sequence[Mapping[str, Any]] = ()
) -> Iterator[Figure]:
    for name in images:
        if record.get(name):
            yield _figure(record[name], name, IMAGE, entities)


def _cut_out(entities: Sequence[Mapping[str, Any]]) -> Iterator[Figure]:
    """Of each entity its crop, and what the mask leaves of it on white."""
    for number, entity in enumerate(entities):
        colour = COLOURS[number % len(COLOURS)]
        for masked, name in ((False, "crop"), (True, "cut-out")):
            told = clean(f"{entity['text']}: {name}" + (f", score {entity['score']:.2f}" if masked else ""), 120)
            try:
                yield Figure.thumbnail(fitted(entity_image(entity, masked), CROP)[0], told, colour)
            except (DataError, ValueError, Image.DecompressionBombError):
                yield _unreadable(told)


def _interleaved(parts: Sequence[Mapping[str, Any]]) -> tuple[list[tuple[str, str]], list[Figure]]:
    """Text with the places of the images, and the images."""
    text: list[tuple[str, str]] = []
    figures: list[Figure] = []
    count = room = 0
    for part in parts:
        if part["image"] is not None:
            count += 1
            text.append((f" [image {count}] ", COLOURS[1]))
            if count <= PARTS:
                figures.append(_figure(part["image"], f"image {count}", IMAGE // 2))
        elif part["text"] and room <= CHARACTERS:
            room += len(part["text"])
            text.append((clean(part["text"]), ""))
    return text[:200], figures


def _figure(data: bytes, name: str, side: int, entities: Sequence[Mapping[str, Any]] = ()) -> Figure:
    try:
        image = record_image(data, name)
    except (DataError, ValueError, Image.DecompressionBombError):
        return _unreadable(name)
    shown, scale = fitted(image, side)
    draw = ImageDraw.Draw(shown)
    for number, entity in enumerate(entities):
        left, top, right, bottom = (round(value * scale) for value in entity["box"])
        box = (left, top, max(right - 1, left), max(bottom - 1, top))
        draw.rectangle(box, outline=COLOURS[number % len(COLOURS)], width=3)
    return Figure.thumbnail(shown, f"{name}, {image.width} × {image.height}")


def fitted(image: Image.Image, side: int) -> tuple[Image.Image, float]:
    """A copy with `side` pixels on its longer side, and the scale. Pixel art keeps its pixels; photos only shrink."""
    scale = side / max(image.size)
    if scale > 1:
        scale = float(max(1, int(scale))) if scale >= 2 else 1.0
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resample = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return image.convert("RGB").resize(size, resample), scale


def _unreadable(name: str) -> Figure:
    return Figure.thumbnail(Image.new("RGB", (32, 32), "#d0d4da"), f"{name} (cannot be decoded)")


def _notes(record: Mapping[str, Any]) -> Iterator[str]:
    """Where it came from."""
    yield f"source: {clean(record.get('source') or '-', 300)}"
    told = record.get("provenance")
    if told:
        try:
            known = json.loads(told)
        except ValueError:
            known = told
        pairs = known.items() if isinstance(known, dict) else [("provenance", known)]
        yield clean("; ".join(f"{name}: {value}" for name, value in pairs), 600)
