"""Text and images in one sequence for stage 1, and which of its tokens are targets.

The model reads token i and predicts token i + 1. As in the original, the *input* token decides whether the prediction
counts: those from `<image>` and from slots do not, those from text and from `</image>` do. So a caption is learned from
its first word on, the word before an image predicts that an image follows, and no image slot is ever a target.
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

IGNORED = -100  # ignored by torch's cross entropy


@dataclass(frozen=True)
class PretrainTemplates:
    """The random choices of stage 1, and its limits."""

    crop_first: float = 0.5
    """Probability, per composition record, that every crop comes before its words ("<crop> red ball", from which the
    model learns to recognise images) instead of after them (as in the prompts of stage 3)."""
    whole_image: float = 0.25
    """Probability that a composition record becomes its whole image and its caption, without crops."""
    mask_background: float = 0.5
    """Probability, per crop, that its background is replaced by white."""
    max_images: int = 5
    """Maximum number of images per document (the first ones are kept); Kosmos-1 used 5."""
    documents_per_row: int = 1
    """Consecutive text documents that share a row; choose about as many as fill `data.max_seq_len`."""

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
        """An image and its caption: `<image> a striped ball in the snow`."""
        return [record_image(record["image"], "image"), caption_of(record)]

    def interleaved(self, record: Record, uniform: Uniform) -> list[PromptPart]:
        """A document with text and images, from an interleaved or a composition record."""
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
        ids: the whole row, including its last token, which is only predicted.
        read: for each token of `ids`, whether the prediction from it counts.

    Returns:
        The inputs `ids[:-1]`, and for each of them the next token, or `IGNORED`.
    """
    labels = [after if learnt else IGNORED for after, learnt in zip(ids[1:], read[:-1], strict=True)]
    return list(ids[:-1]), labels


def read_in_caption(ids: Sequence[int], image_end: int) -> list[bool]:
    """Predictions count from `</image>` on, so only the caption is learned; without an image, all of them count."""
    start = ids.index(image_end) if image_end in ids else 0
    return [position >= start for position in range(len(ids))]


def read_in_document(ids: Sequence[int], image: int) -> list[bool]:
    """Predictions count everywhere except from `<image>` and the slots, which have the same id."""
    return [token != image for token in ids]
