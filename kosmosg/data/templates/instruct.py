"""How a record becomes an instruction example: the ordered text and images of the prompt, and the target image.

Composition-based instruction tuning (paper, section 3.3) replaces the entities of a caption by images of them, at the
character spans stored in composition records.

Every random decision takes the next number of a `uniform` function, in a fixed order, so that a sample is a pure
function of its seed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image, UnidentifiedImageError

from kosmosg.data.image_bytes import decode_image, decode_mask
from kosmosg.errors import ConfigError, DataError

Record = Mapping[str, Any]
Uniform = Callable[[], float]  # the next random number in [0, 1)
Piece = str | int  # a piece of text, or the index of the entity whose image goes here
PromptPart = str | Image.Image  # what `KosmosGProcessor.sequence` takes

# An entity's words extend to the next of these: a plural s or a possessive belongs to the entity.
WORD_ENDS = frozenset(" ,.!?;:)]}")


@dataclass(frozen=True)
class Example:
    """One instruction example: `parts` is the prompt in order."""

    parts: list[PromptPart]
    record: Record
    field: str
    """Field of the record with the image to be generated."""

    @property
    def target(self) -> Image.Image:
        """The image to be generated (RGB). Decoded when asked for: with a precomputed posterior it is not needed.

        Raises DataError if it is missing or cannot be decoded.
        """
        return record_image(self.record[self.field], self.field)


@dataclass(frozen=True)
class InstructTemplates:
    """The random choices of stage 3 and their probabilities; the defaults are the original's."""

    drop_entity_text: float = 0.5
    """Probability that the words of the entities are dropped and only their images remain."""
    drop_scope: Literal["sample", "entity"] = "sample"
    """`sample` drops the words of all entities or of none (the original's code), `entity` decides for each (paper)."""
    mask_background: float = 0.5
    """Probability, per entity, that its background is replaced by white."""
    drop_edit_caption: float = 0.5
    """Probability that an editing example has the image without its caption."""

    def __post_init__(self) -> None:
        for name in ("drop_entity_text", "mask_background", "drop_edit_caption"):
            chance = getattr(self, name)
            if not 0.0 <= chance <= 1.0:
                raise ConfigError(f"templates.{name} is {chance}; a probability lies between 0 and 1")
        if self.drop_scope not in ("sample", "entity"):
            raise ConfigError(f"templates.drop_scope is {self.drop_scope!r}; choose 'sample' or 'entity'")

    def composition(self, record: Record, uniform: Uniform, at_least: int = 0) -> Example:
        """A caption whose entities are shown: "a <cat> and a <dog> in the garden" -> the whole image.

        With `at_least`, the images of the prompt may be decoded smaller, their shorter sides no shorter than that.
        """
        entities = record["entities"]
        pieces = self._pieces(record["caption"], entities, uniform)
        parts: list[PromptPart] = []
        for piece in pieces:
            if isinstance(piece, str):
                parts.append(piece)
            else:
                parts.append(entity_image(entities[piece], uniform() <= self.mask_background, at_least))
        return Example(parts, record, "image")

    def edit(self, record: Record, uniform: Uniform, at_least: int = 0) -> Example:
        """An editing pair: [caption] <before> instruction -> after. `at_least` as in `composition`."""
        parts: list[PromptPart] = [] if uniform() < self.drop_edit_caption else [record["caption"] or ""]
        parts += [record_image(record["before"], "before", at_least), record["instruction"]]
        return Example(parts, record, "after")

    def t2i(self, record: Record, uniform: Uniform, at_least: int = 0) -> Example:
        """The caption alone -> the image. Takes composition records and caption records that have an image."""
        return Example([caption_of(record)], record, "image")

    def _pieces(self, caption: str, entities: Sequence[Record], uniform: Uniform) -> list[Piece]:
        if self.drop_scope == "sample":
            drops = [uniform() < self.drop_entity_text] * len(entities)
        else:
            drops = [uniform() < self.drop_entity_text for _ in entities]
        return split_at_spans(caption, [(entity["start"], entity["end"]) for entity in entities], drops)


def split_at_spans(
    caption: str, spans: Sequence[tuple[int, int]], drop: Sequence[bool], image_first: bool = False
) -> list[Piece]:
    """Puts an image after (or, if `drop` says so, in place of) the words of every entity.

    Args:
        caption: the whole caption.
        spans: character range [start, end) of each entity's words.
        drop: for each entity, whether its words are dropped.
        image_first: put the images before the words instead.

    Returns:
        Text and entity indices in reading order. A span that overlaps the previous one is left as text.

    Raises:
        DataError: a span that lies outside the caption.
    """
    pieces: list[Piece] = []
    cursor = 0
    for index in sorted(range(len(spans)), key=lambda i: spans[i][1]):
        start, end = spans[index]
        if not 0 <= start < end <= len(caption):
            raise DataError(
                f"entity span [{start}, {end}) lies outside its caption of {len(caption)} characters; "
                "build the dataset again"
            )
        if start < cursor:
            continue
        end = _word_end(caption, end)
        words = "" if drop[index] else caption[start:end]
        if image_first:
            pieces += [*_text(caption[cursor:start]), index, *_text(words)]
        else:
            # One piece of text, unchanged: the words must not be tokenised separately from what precedes them.
            pieces += [*_text(caption[cursor:start] + words), index]
        cursor = end
    return pieces + _text(caption[cursor:])


def entity_image(entity: Record, masked: bool, at_least: int = 0) -> Image.Image:
    """The crop of an entity (RGB), on white if `masked`. Only one crop is stored; the background is removed here.

    With `at_least`, the crop may be decoded smaller, its shorter side no shorter than that many pixels.
    """
    crop = record_image(entity["crop"], "crop", at_least)
    if not masked:
        return crop
    try:
        mask = Image.fromarray(decode_mask(entity["mask"]))
    except Exception as error:
        raise DataError(f"the mask of entity {entity['text']!r} cannot be decoded: {error}") from error
    if at_least and mask.size != crop.size and scaled(mask.size, crop.size):
        mask = mask.convert("L").resize(crop.size, Image.Resampling.BOX)
    if mask.size != crop.size:
        raise DataError(
            f"the mask of entity {entity['text']!r} is {mask.size} pixels and its crop {crop.size}; they must be equal"
        )
    return Image.composite(crop, Image.new("RGB", crop.size, "white"), mask)


def scaled(size: tuple[int, int], smaller: tuple[int, int]) -> bool:
    """Whether a decoder gives an image of `size` as `smaller` when it scales by a half, a quarter or an eighth."""
    return any(smaller == (-(-size[0] // by), -(-size[1] // by)) for by in (2, 4, 8))


def record_image(data: bytes | None, field: str, at_least: int = 0) -> Image.Image:
    """The image of a record's field, decoded to RGB, with `at_least` perhaps smaller: see `decode_image`.

    Raises:
        DataError: the field is empty, or is not an image.
    """
    if not data:
        raise DataError(f"a record has no {field}, which this template needs; build the dataset with images")
    try:
        return decode_image(data, at_least)
    except UnidentifiedImageError as error:
        raise DataError(f"the {field} of a record, {len(data)} bytes, cannot be decoded: it is no image") from error
    except Exception as error:
        # Decoders raise all kinds of exceptions on damaged bytes, DecompressionBombError and struct.error among them.
        raise DataError(f"the {field} of a record cannot be decoded: {error}") from error


def caption_of(record: Record) -> str:
    """The text of a record of any kind: the field `caption` of composition and edit records, `text` of others."""
    words = record.get("caption")
    if words is None:
        words = record.get("text")
    if words is None:
        raise DataError(
            f"record {record.get('id')!r} has neither a caption nor a text; its fields are {sorted(record)}"
        )
    return str(words)


def _text(text: str) -> list[Piece]:
    # Whitespace has no tokens, so a blank text between two images is dropped.
    return [text] if text.strip() else []


def _word_end(caption: str, end: int) -> int:
    while end < len(caption) and caption[end] not in WORD_ENDS:
        end += 1
    return end
