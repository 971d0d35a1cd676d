"""How one record becomes one instruction example: the ordered text and images of the prompt, and the target picture.

Composition-based instruction tuning (paper, section 3.3) replaces the entities of a caption by pictures of them. Two
rules do the walking, and both give the pieces that the processor turns into tokens one by one:

* `split_at_spans` takes the character spans that our composition records carry. It is what training uses.
* `split_at_tags` searches the caption for the tags again, exactly as the original reader of Open Images does, with its
  quirks: it gives up (returns None) where the entity opens the caption and its word is dropped, and it forgets a tag
  that occurs only before the point it has reached. It is there for comparison runs and for datasets without spans.

Every random decision takes the next number of a `draw` function, in a fixed order, so that a sample is a pure function
of its seed.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from PIL import Image

from kosmosg.data.annotators.nouns import COLOURS
from kosmosg.data.image_bytes import decode_image, decode_mask
from kosmosg.errors import ConfigError, DataError

Record = Mapping[str, Any]
Draws = Callable[[], float]  # the next uniform number in [0, 1)
Piece = str | int  # a stretch of text, or the index of the entity whose picture stands here
PromptPart = str | Image.Image  # what `KosmosGProcessor.sequence` takes

# An entity's words run on to the next of these: a plural s or a possessive belongs to the entity, not to the rest.
WORD_ENDS = frozenset(" ,.!?;:)]}")


@dataclass(frozen=True)
class Example:
    """One instruction example: `parts` is the prompt in order, `target` the picture to be drawn (RGB)."""

    parts: list[PromptPart]
    target: Image.Image


@dataclass(frozen=True)
class InstructTemplates:
    """The random choices of stage 3 and their probabilities; the defaults are the original's."""

    drop_entity_text: float = 0.5
    """Chance that the words of the entities go and only their pictures stay."""
    drop_scope: Literal["sample", "entity"] = "sample"
    """`sample` drops the words of all entities or of none (the original's code), `entity` decides for each (paper)."""
    mask_background: float = 0.5
    """Chance, for each entity, that its picture is cut out and set on white."""
    drop_edit_caption: float = 0.5
    """Chance that an editing example shows the picture without its caption."""
    rule: Literal["spans", "tags"] = "spans"
    """`spans` or `tags`, see the module's first lines. Under `tags`, a sample that the original would skip keeps its
    entity words instead: batches stay whole, and no sequence appears that the original cannot make."""

    def __post_init__(self) -> None:
        for name in ("drop_entity_text", "mask_background", "drop_edit_caption"):
            chance = getattr(self, name)
            if not 0.0 <= chance <= 1.0:
                raise ConfigError(f"templates.{name} is {chance}; a probability lies between 0 and 1")
        if self.drop_scope not in ("sample", "entity"):
            raise ConfigError(f"templates.drop_scope is {self.drop_scope!r}; choose 'sample' or 'entity'")
        if self.rule not in ("spans", "tags"):
            raise ConfigError(f"templates.rule is {self.rule!r}; choose 'spans' or 'tags'")
        if self.rule == "tags" and self.drop_scope == "entity":
            raise ConfigError("templates.rule 'tags' drops per sample; set templates.drop_scope to 'sample'")

    def composition(self, record: Record, draw: Draws) -> Example:
        """A caption whose entities are shown: "a <cat> and a <dog> in the garden" -> the whole picture."""
        entities = record["entities"]
        pieces = self._pieces(record["caption"], entities, draw)
        parts: list[PromptPart] = []
        for piece in pieces:
            if isinstance(piece, str):
                parts.append(piece)
            else:
                parts.append(entity_picture(entities[piece], masked=draw() <= self.mask_background))
        return Example(parts, picture(record["image"], "image"))

    def edit(self, record: Record, draw: Draws) -> Example:
        """An editing pair: [caption] <before> instruction -> after."""
        parts: list[PromptPart] = [] if draw() < self.drop_edit_caption else [record["caption"] or ""]
        parts += [picture(record["before"], "before"), record["instruction"]]
        return Example(parts, picture(record["after"], "after"))

    def t2i(self, record: Record, draw: Draws) -> Example:
        """The caption alone -> the picture. Takes composition records and caption records that have an image."""
        return Example([caption_of(record)], picture(record["image"], "image"))

    def _pieces(self, caption: str, entities: Sequence[Record], draw: Draws) -> list[Piece]:
        if self.rule == "tags":
            tags = [entity["text"] for entity in entities]
            dropped = draw() < self.drop_entity_text
            found = split_at_tags(caption, tags, dropped)
            if found is None and dropped:
                found = split_at_tags(caption, tags, False)
            return [caption] if found is None else found
        if self.drop_scope == "sample":
            drops = [draw() < self.drop_entity_text] * len(entities)
        else:
            drops = [draw() < self.drop_entity_text for _ in entities]
        return split_at_spans(caption, [(entity["start"], entity["end"]) for entity in entities], drops)


def split_at_spans(
    caption: str, spans: Sequence[tuple[int, int]], drop: Sequence[bool], picture_first: bool = False
) -> list[Piece]:
    """Puts a picture behind (or, where `drop` says so, in place of) the words of every entity.

    Args:
        caption: the whole caption.
        spans: character range [start, end) of each entity's words.
        drop: for each entity, whether its words go.
        picture_first: put the pictures before the words instead.

    Returns:
        Text and entity indices in reading order. A span that begins before the previous one ended is left as text.

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
        if picture_first:
            pieces += [*_text(caption[cursor:start]), index, *_text(words)]
        else:
            # One stretch of text, as it stood: the words are not to be encoded apart from what leads up to them.
            pieces += [*_text(caption[cursor:start] + words), index]
        cursor = end
    return pieces + _text(caption[cursor:])


def split_at_tags(caption: str, tags: Sequence[str], drop_text: bool) -> list[Piece] | None:
    """The original's walk over a caption, which searches every tag in what is left of it.

    Args:
        caption: the whole caption.
        tags: one tag for each entity, in the order of the record's crops.
        drop_text: whether the words of the entities go.

    Returns:
        Text and entity indices in reading order, or None where the original fails and leaves the sample out: the words
        before a picture would be empty, or a tag is not a valid regular expression.
    """
    try:
        usable = {tag: index for index, tag in enumerate(tags) if tag and is_usable_tag(tag, tags, caption)}
    except re.error:
        return None
    in_order = sorted(usable.items(), key=lambda item: _end_of(item[0], caption))
    pieces: list[Piece] = []
    rest = caption
    for tag, index in in_order:
        match = _find(tag, rest)
        if match is None:
            continue
        end = _word_end(rest, match.end())
        text = rest[: match.start() if drop_text else end]
        if not text:
            return None
        pieces += _text(text)
        pieces.append(index)
        rest = rest[end:]
    return pieces + _text(rest)


def is_usable_tag(tag: str, tags: Sequence[str], caption: str) -> bool:
    """Whether a tag names one thing that the caption mentions: no colour word, no part of another tag.

    "dog" is refused beside "hot dog", since a search for it would find the sausage. Colours count as they are written
    in the list, case and all, as in the original.

    Raises:
        re.error: the tag has characters with a meaning in regular expressions. The original compares tags with each
            other without escaping them, and this is that comparison.
    """
    if tag in COLOURS or _find(tag, caption) is None:
        return False
    return sum(re.search(rf"\b{tag}\b", other) is not None for other in tags) <= 1


def entity_picture(entity: Record, masked: bool) -> Image.Image:
    """The crop of an entity (RGB), on white where `masked` says so. One crop is stored; the cut happens here."""
    crop = picture(entity["crop"], "crop")
    if not masked:
        return crop
    try:
        mask = Image.fromarray(decode_mask(entity["mask"]))
    except (OSError, SyntaxError) as error:
        raise DataError(f"the mask of entity {entity['text']!r} cannot be decoded: {error}") from error
    if mask.size != crop.size:
        raise DataError(
            f"the mask of entity {entity['text']!r} is {mask.size} pixels and its crop {crop.size}; they must be equal"
        )
    return Image.composite(crop, Image.new("RGB", crop.size, "white"), mask)


def picture(data: bytes | None, field: str) -> Image.Image:
    """The image of a record's field, decoded to RGB.

    Raises:
        DataError: the field is empty, or what it holds is no image.
    """
    if not data:
        raise DataError(f"a record has no {field}, which this template needs; build the dataset with pictures")
    try:
        return decode_image(data)
    except (OSError, SyntaxError) as error:
        raise DataError(f"the {field} of a record cannot be decoded: {error}") from error


def caption_of(record: Record) -> str:
    """The words of a record, whichever kind it is: composition and edit records say caption, the others text."""
    words = record.get("caption")
    if words is None:
        words = record.get("text")
    if words is None:
        raise DataError(
            f"record {record.get('id')!r} has neither a caption nor a text; its fields are {sorted(record)}"
        )
    return str(words)


def _text(text: str) -> list[Piece]:
    # White space has no tokens, so a blank stretch between two pictures is nothing at all.
    return [text] if text.strip() else []


def _word_end(caption: str, end: int) -> int:
    while end < len(caption) and caption[end] not in WORD_ENDS:
        end += 1
    return end


def _find(tag: str, text: str) -> re.Match[str] | None:
    return re.search(rf"\b{re.escape(tag)}\b", text, re.IGNORECASE)


def _end_of(tag: str, caption: str) -> int:
    match = _find(tag, caption)
    return len(caption) if match is None else match.end()
