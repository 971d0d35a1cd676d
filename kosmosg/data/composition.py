"""From an annotated sample to a composition record: masks become boxes, boxes become crops.

The geometry is the original's (its `convert_openimage`): probability above 0.3, widened by a hundredth of the side, the
connected piece whose bounding box holds most of the mask, a square box around it that stays inside the image.
Whatever is dropped is dropped with a reason.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kosmosg.data.annotators.base import EntityMask, Rejection, Sample, Span
from kosmosg.data.image_bytes import FORMATS, encode_image, encode_mask
from kosmosg.data.records import CompositionRecord, Entity, check_caption_spans
from kosmosg.errors import ConfigError

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, exclusive at the end


@dataclass(frozen=True)
class ComposeOptions:
    """How images and masks are cut into records."""

    image_size: int = 512
    """Longest side of the stored image in pixels; smaller images are never enlarged."""
    crop_size: int = 512
    """Side of a stored crop in pixels, likewise at most."""
    threshold: float = 0.3
    """Probability above which a pixel belongs to the entity (original: 0.3)."""
    dilate: float = 0.01
    """How far a mask is dilated, as a fraction of the image's side (original: side // 100 pixels)."""
    main_piece: bool = True
    """Keep only the main connected piece of a mask (original); false for segmenters that choose pieces themselves."""
    min_area: float = 0.001
    """Minimum share of the image that a mask covers; smaller entities are dropped as `too-small`."""
    max_area: float = 0.98
    """Maximum share of the image that a mask covers; larger entities are dropped as `whole-image`."""
    image_format: str = "png"
    """png (lossless), jpeg or webp."""
    quality: int = 95
    """Quality of jpeg and webp, 1 to 100."""

    def __post_init__(self) -> None:
        if self.image_format not in FORMATS:
            raise ConfigError(f"compose.image_format: {self.image_format!r} is not one of {', '.join(FORMATS)}")
        if not 0 <= self.threshold < 1:
            raise ConfigError(f"compose.threshold: {self.threshold} is not a probability below 1")
        if min(self.image_size, self.crop_size) < 8:
            raise ConfigError(f"compose: sizes of {self.image_size} and {self.crop_size} pixels; at least 8 are needed")


def compose(sample: Sample, options: ComposeOptions, names: Mapping[str, str]) -> CompositionRecord | Rejection:
    """The record of one sample; `names` gives `captioner`, `entity_finder` and `segmenter`.

    Entities that cannot be cut out are dropped, each with its reason in `sample.dropped`. A sample without any entity
    left is rejected (`no-entity`), because nothing about composition could be learned from it.
    """
    picture = sample.image
    stored = shrink(picture, options.image_size)
    entities: list[Entity] = []
    for span, cut in zip(sample.spans, sample.cuts, strict=True):
        entity = _entity(picture, span, cut, stored.width / picture.width, options)
        if isinstance(entity, Rejection):
            sample.dropped.append(entity.reason)
        else:
            entities.append(entity)
    if not entities:
        reasons = ", ".join(sorted(set(sample.dropped))) or "none was found"
        return Rejection("no-entity", f"no entity of {sample.caption!r} is left ({reasons})")
    check_caption_spans(sample.caption, entities)
    return CompositionRecord(
        id=sample.id,
        caption=sample.caption,
        image=encode_image(stored, options.image_format, options.quality),
        width=stored.width,
        height=stored.height,
        entities=sorted(entities, key=lambda entity: entity["start"]),
        source=sample.source,
        sha256=sample.sha256,
        captioner=names["captioner"],
        entity_finder=names["entity_finder"],
        segmenter=names["segmenter"],
        provenance=provenance(sample.hints),
    )


def provenance(hints: Mapping[str, str]) -> str | None:
    """Licence, author and address as JSON, as far as the source tells them; None when it tells nothing."""
    told = {name: hints[name] for name in ("licence", "author", "url") if hints.get(name)}
    return json.dumps(told, ensure_ascii=False) if told else None


def _entity(
    picture: Image.Image, span: Span, cut: EntityMask, scale: float, options: ComposeOptions
) -> Entity | Rejection:
    if cut.probability.shape != (picture.height, picture.width):
        return Rejection("bad-mask", f"the mask of {span.text!r} is {cut.probability.shape}, not of the image's size")
    mask = cut.probability > options.threshold * 255
    # A reference comes from a renderer, so its mask is exact and needs no repair.
    if cut.reference is None:
        mask = widen(mask, options.dilate)
        mask = main_part(mask) if options.main_piece else mask
    share = float(mask.mean())
    if share == 0:
        return Rejection("empty-mask", f"{span.text!r} was not found in the image")
    if share < options.min_area:
        return Rejection("too-small", f"{span.text!r} covers {share:.2%} of the image")
    if share > options.max_area:
        return Rejection("whole-picture", f"{span.text!r} covers {share:.1%} of the image")
    box = square_box(mask)
    if cut.reference is None:
        crop, crop_mask = picture.crop(box), mask[box[1] : box[3], box[0] : box[2]]
    else:
        crop, crop_mask = cut.reference.image, cut.reference.mask
    crop = shrink(crop, options.crop_size)
    return Entity(
        text=span.text,
        start=span.start,
        end=span.end,
        box=scaled(box, scale, round(picture.width * scale), round(picture.height * scale)),
        crop=encode_image(crop, options.image_format, options.quality),
        mask=encode_mask(resize_mask(crop_mask, crop.size)),
        score=round(float(cut.probability[mask].mean()) / 255, 4),
    )


def widen(mask: NDArray[np.bool_], part: float) -> NDArray[np.bool_]:
    """The mask dilated by a square of `part` of the image's longer side (unchanged below two pixels)."""
    size = int(max(mask.shape) * part)
    if size < 2:
        return mask
    import cv2

    grown = cv2.dilate(mask.astype(np.uint8), np.ones((size, size), np.uint8))
    return np.asarray(grown > 0)


def main_part(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The part of the mask inside the bounding box of its main piece.

    The main piece is the connected one whose box contains the most mask pixels, including those of other components:
    the spots of a dog belong to the dog, a second dog at the other end of the image does not.
    """
    import cv2

    count, _, boxes, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    best, most = np.zeros_like(mask), 0
    for left, top, width, height, _ in boxes[1:count]:
        window = (slice(top, top + height), slice(left, left + width))
        held = int(mask[window].sum())
        if held > most:
            most, best = held, np.zeros_like(mask)
            best[window] = mask[window]
    return best


def square_box(mask: NDArray[np.bool_]) -> Box:
    """The smallest square around a mask, moved inside the image and limited by its size."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, bottom, left, right = int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1
    height, width = mask.shape
    side = min(max(bottom - top, right - left), height, width)
    x = min(max((left + right - side) // 2, 0), width - side)
    y = min(max((top + bottom - side) // 2, 0), height - side)
    return x, y, x + side, y + side


def scaled(box: Box, scale: float, width: int, height: int) -> list[int]:
    """A square box in the pixels of the stored image: still square, still inside."""
    side = max(1, min(round((box[2] - box[0]) * scale), width, height))
    x = min(round(box[0] * scale), width - side)
    y = min(round(box[1] * scale), height - side)
    return [x, y, x + side, y + side]


def shrink(picture: Image.Image, longest: int) -> Image.Image:
    """The image with its longer side at most `longest` pixels."""
    scale = longest / max(picture.size)
    if scale >= 1:
        return picture
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def resize_mask(mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask resized to (width, height): a pixel is set if at least half of the area that it covers is."""
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    if grey.size != size:
        grey = grey.resize(size, Image.Resampling.BOX)
    return np.asarray(grey) > 127
