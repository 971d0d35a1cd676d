"""Batches of stage 1: text, captioned images and interleaved documents, with next-token labels."""

from collections.abc import Sequence

from kosmosg.data.collate.base import (
    Batch,
    BatchRow,
    KeyedRecord,
    SampleKey,
    fit,
    numbers,
    pad_rows,
    room_for_an_image,
    template_of,
)
from kosmosg.data.packing import text_row
from kosmosg.data.templates.instruct import PromptPart, Record, caption_of
from kosmosg.data.templates.pretrain import IGNORED, PretrainTemplates, read_in_caption, read_in_document, shifted
from kosmosg.errors import ConfigError
from kosmosg.processor import KosmosGProcessor


class PretrainCollate:
    """Every sample is one row, also for text: `kosmosg.data.packing` says how documents fill it.

    Returns `input_ids` (B, T), `image_embeds_position_mask` (B, T), `labels` (B, T) with -100 where there is no target,
    `seed` (B,), `weight` () the number of target tokens, and `pixel_values` (N, 3, S, S) if there are images.

    Args:
        processor: tokens and pixels.
        length: maximum row length in tokens, including the last, predicted one; longer rows are truncated.
        templates: the random choices.
    """

    def __init__(
        self, processor: KosmosGProcessor, length: int = 2048, templates: PretrainTemplates | None = None
    ) -> None:
        self.processor = processor
        self.length = room_for_an_image(length, processor)
        self.templates = templates or PretrainTemplates()

    def __call__(self, samples: Sequence[KeyedRecord]) -> Batch:
        """The batch. Raises ConfigError for samples of a kind that stage 1 does not read."""
        batch = pad_rows([self._row(key, record) for key, record in samples], self.processor)
        batch["weight"] = (batch["labels"] != IGNORED).sum().float()
        return batch

    def _row(self, key: SampleKey, record: Record) -> BatchRow:
        template = template_of("pretrain", key)
        if template == "text":
            return self._text(key, record)
        if template == "caption":
            return self._parts(key, self.templates.caption(record) if record.get("image") else [caption_of(record)])
        if template == "interleaved":
            return self._parts(key, self.templates.interleaved(record, numbers(key.seed)), document=True)
        raise ConfigError(f"pretrain has no template {template!r}; it has text, caption and interleaved")

    def _parts(self, key: SampleKey, parts: list[PromptPart], document: bool = False) -> BatchRow:
        processor = self.processor
        ids, slots, images = fit(*processor.sequence(parts, eos=True), self.length, processor)
        learnt = read_in_document(ids, processor.image_id) if document else read_in_caption(ids, processor.image_end_id)
        inputs, labels = shifted(ids, learnt)
        return BatchRow(inputs, slots[:-1], key.seed, images, labels)

    def _text(self, key: SampleKey, record: Record) -> BatchRow:
        processor = self.processor
        documents = [caption_of(one) for one in record.get("documents", [record])]
        ids = text_row(
            documents,
            self.length,
            processor.tokenize,
            processor.bos_id,
            processor.line_end_id,
            processor.eos_id,
            numbers(key.seed),
        )
        inputs, labels = shifted(ids, [True] * len(ids))
        return BatchRow(inputs, [False] * len(inputs), key.seed, labels=labels)
