"""Text and images in one stream for stage 1, and which of its tokens are learnt.

The model reads token i and predicts token i + 1. The original decides by the token that is being *read*: nothing is
predicted from `<image>` or from a slot, everything is from text and from `</image>`. So a caption is learnt from its
first word on, the word before a image predicts that a image comes, and no image token is ever a target.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kosmosg.data.templates.instruct import (
    PromptPart,
    Record,
    Uniform,
    caption_of,
    entity_image,
    record_image,
    split_at_spans,
)
from kosmosg.errors import ConfigError, DataError

IGNORED = -100  # what torch's cross entropy skips


@dataclass(frozen=True)
class PretrainTemplates:
    """The random choices of stage 1, and its limits."""

    crop_first: float = 0.5
    """Chance, for each composition record, that every crop stands before its words ("<crop> red ball", from which the
    model learns to see) and not behind them (the form that the prompts of stage 3 have)."""
    whole_image: float = 0.25
    """Chance that a composition record becomes its whole image and its caption, without crops."""
    mask_background: float = 0.5
    """Chance, for each crop, that it is cut out and set on white."""
    max_images: int = 5
    """Images kept of one document, the first ones; Kosmos-1 kept 5."""
    documents_per_row: int = 1
    """Text documents, neighbours in their dataset, that share a row: as many as usually fill `data.max_seq_len`."""

    def __post_init__(self) -> None:
        for name in ("crop_first", "whole_image", "mask_background"):
            chance = getattr(self, name)
            if not 0.0 <= chance <= 1.0:
                raise ConfigError(f"templates.{name} is {chance}; a probability lies between 0 and 1")
        if self.documents_per_row < 1:
            raise ConfigError(f"templates.documents_per_row is {self.documents_per_row}; a row needs a document")
        if self.max_images < 1:
            raise ConfigError(f"templates.max_images is {self.max_images}; a document shows at least one image")

    def caption(self, record: Record) -> list[PromptPart]:
        """A image and its caption: `<image> a striped ball in the snow`."""
        return [record_image(record["image"], "image"), caption_of(record)]

    def interleaved(self, record: Record, uniform: Uniform) -> list[PromptPart]:
        """A document with images between its text, from an interleaved or a composition record."""
        if "parts" in record:
            return self._document(record)
        if "entities" not in record:
            raise DataError(
                f"record {record.get('id')!r} has neither parts nor entities, so it cannot be interleaved; "
                "use a composition or interleaved dataset"
            )
        if uniform() < self.whole_image or not record["entities"]:
            return self.caption(record)
        return self._composition(record, uniform)

    def _document(self, record: Record) -> list[PromptPart]:
        parts: list[PromptPart] = []
        images = 0
        for part in record["parts"]:
            if part.get("text"):
                parts.append(part["text"])
            if part.get("image") and images < self.max_images:
                parts.append(record_image(part["image"], "image"))
                images += 1
        return parts

    def _composition(self, record: Record, uniform: Uniform) -> list[PromptPart]:
        entities = record["entities"]
        spans = [(entity["start"], entity["end"]) for entity in entities]
        keep = [False] * len(spans)
        pieces = split_at_spans(record["caption"], spans, keep, image_first=uniform() < self.crop_first)
        parts: list[PromptPart] = []
        images = 0
        for piece in pieces:
            if isinstance(piece, str):
                parts.append(piece)
            elif images < self.max_images:
                parts.append(entity_image(entities[piece], masked=uniform() <= self.mask_background))
                images += 1
        return parts


def shifted(ids: Sequence[int], read: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Inputs and labels of one row.

    Args:
        ids: the whole row, its last token included, which is predicted but never read.
        read: for each token of `ids`, whether the next one is predicted from it.

    Returns:
        The inputs `ids[:-1]`, and for each of them the next token, or `IGNORED`.
    """
    labels = [after if learnt else IGNORED for after, learnt in zip(ids[1:], read[:-1], strict=True)]
    return list(ids[:-1]), labels


def read_in_caption(ids: Sequence[int], image_end: int) -> list[bool]:
    """From `</image>` on: a caption is learnt, what leads up to it is not. Without a image, all is."""
    start = ids.index(image_end) if image_end in ids else 0
    return [position >= start for position in range(len(ids))]


def read_in_document(ids: Sequence[int], image: int) -> list[bool]:
    """All but `<image>` and the slots, which carry the same id."""
    return [token != image for token in ids]
