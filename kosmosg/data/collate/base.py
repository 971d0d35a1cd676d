"""Records in, one training batch out: the last step before the model, run in every data loader.

A collate takes a list of (draw, record). The draw says which source the record came from, and carries the one seed from
which every random choice of this sample follows; so a sample is the same whichever worker builds it, in whatever batch.
Rows are padded on the right and no attention mask is made: the model is causal and its losses skip or expect the pads.

Shape legend: B rows, T tokens of the longest row, N images of the batch in reading order, S pixels per side of an input
image, Q tokens of a CLIP caption.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kosmosg.data.packing import document_lines, pack_lines
from kosmosg.data.templates.instruct import Draws, Example, InstructTemplates, PromptPart, Record, caption_of
from kosmosg.data.templates.pretrain import IGNORED, PretrainTemplates, read_in_caption, read_in_document, shifted
from kosmosg.errors import ConfigError, DataError
from kosmosg.processor import KosmosGProcessor

PRETRAIN_KINDS = ("text", "caption", "interleaved", "questions")
INSTRUCT_KINDS = ("composition", "edit", "t2i")


class SampleKey(Protocol):
    """One place in the order of samples: which source, and the seed of everything random about the sample."""

    @property
    def source(self) -> str: ...
    @property
    def seed(self) -> int: ...


Batch = dict[str, Tensor]
KeyedRecord = tuple[SampleKey, Record]


@dataclass
class BatchRow:
    """One row of a batch before padding; `labels` is what stage 1 predicts from each of `ids`."""

    ids: list[int]
    slots: list[bool]
    seed: int
    images: list[Image.Image] = field(default_factory=list)
    labels: list[int] | None = None


class PretrainCollate:
    """Stage 1: text, captioned images and interleaved documents, with next-token labels.

    All text documents of the batch share packs of `length` tokens; every other record has a row of its own. So the
    number of rows B differs from the number of records.

    Gives `input_ids` (B, T), `image_embeds_position_mask` (B, T), `labels` (B, T) with -100 where nothing is learnt,
    `seed` (B,), `weight` () the number of learnt tokens, and `pixel_values` (N, 3, S, S) if there are images.

    Args:
        processor: tokens and pixels.
        length: longest row in tokens, the predicted last one included; longer documents are cut.
        templates: the random choices.
        kinds: for each source of the mixture, one of `PRETRAIN_KINDS`. None: the sources are named so.
    """

    def __init__(
        self,
        processor: KosmosGProcessor,
        length: int = 2048,
        templates: PretrainTemplates | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        self.processor = processor
        self.kinds = _known("pretrain", kinds, PRETRAIN_KINDS)
        self.length = _room_for_an_image(length, processor)
        self.templates = templates or PretrainTemplates()

    def __call__(self, samples: Sequence[KeyedRecord]) -> Batch:
        rows: list[BatchRow] = []
        texts: list[KeyedRecord] = []
        for draw, record in samples:
            kind = _kind(self.kinds, draw)
            if kind == "text":
                texts.append((draw, record))
            else:
                rows.append(self._row(kind, draw, record))
        rows += self._packs(texts)
        batch = pad_rows(rows, self.processor)
        batch["weight"] = (batch["labels"] != IGNORED).sum().float()
        return batch

    def _row(self, kind: str, draw: SampleKey, record: Record) -> BatchRow:
        processor = self.processor
        parts: list[PromptPart]
        told = kind in ("caption", "questions")  # a question and its answer are read like any words about an image
        if told and record.get("image"):
            parts = self.templates.caption(record)
        elif told:
            parts = [caption_of(record)]
        else:
            parts = self.templates.interleaved(record, numbers(draw.seed))
        ids, slots, images = fit(*processor.sequence(parts, eos=True), self.length, processor)
        read = read_in_caption(ids, processor.image_end_id) if told else read_in_document(ids, processor.image_id)
        inputs, labels = shifted(ids, read)
        return BatchRow(inputs, slots[:-1], draw.seed, images, labels)

    def _packs(self, texts: Sequence[KeyedRecord]) -> Iterator[BatchRow]:
        processor = self.processor
        lines = [
            line
            for _, record in texts
            for line in document_lines(caption_of(record), processor.tokenize, processor.line_end_id, processor.eos_id)
        ]
        for pack in pack_lines(lines, self.length, processor.bos_id):
            inputs, labels = shifted(pack, [True] * len(pack))
            yield BatchRow(inputs, [False] * len(inputs), texts[0][0].seed, labels=labels)


class AlignCollate:
    """Stage 2: captions alone, for the MLLM and for CLIP's text encoder.

    Gives `input_ids` (B, T), `image_embeds_position_mask` (B, T) all False, `clip_input_ids` (B, Q), `seed` (B,) and
    `weight` () the number of rows.

    Args:
        processor: the MLLM's tokens.
        clip_tokenizer: the tokenizer of the decoder's text encoder (transformers).
        clip_length: Q, tokens that the text encoder reads and the aligner gives; 77 for Stable Diffusion.
        length: longest row in tokens. The original leaves out captions over 85; here they are cut.
        empty: chance that the caption is replaced by the empty one, so that the null condition is aligned too.
        pad_to_length: pad every batch to `length` and not to its longest caption. The reconstruction loss counts pads,
            as the original's does, so only then does it not depend on how samples are spread over workers.
    """

    def __init__(
        self,
        processor: KosmosGProcessor,
        clip_tokenizer: Callable[..., Mapping[str, Any]],
        clip_length: int = 77,
        length: int = 86,
        empty: float = 0.0,
        pad_to_length: bool = False,
    ) -> None:
        if not 0.0 <= empty <= 1.0:
            raise ConfigError(f"align.empty is {empty}; a probability lies between 0 and 1")
        if length < 2:
            raise ConfigError(f"align.length is {length} tokens; captions need at least 2, <s> among them")
        self.processor = processor
        self.clip_tokenizer = clip_tokenizer
        self.clip_length = clip_length
        self.length = length
        self.empty = empty
        self.pad_to_length = pad_to_length

    def __call__(self, samples: Sequence[KeyedRecord]) -> Batch:
        rows, captions = [], []
        for draw, record in samples:
            caption = "" if numbers(draw.seed)() < self.empty else caption_of(record)
            ids, slots, _ = fit(*self.processor.sequence([caption]), self.length, self.processor)
            rows.append(BatchRow(ids, slots, draw.seed))
            captions.append(caption)
        batch = pad_rows(rows, self.processor, self.length if self.pad_to_length else 0)
        clip = self.clip_tokenizer(
            captions, padding="max_length", max_length=self.clip_length, truncation=True, return_tensors="pt"
        )
        batch["clip_input_ids"] = clip["input_ids"]
        batch["weight"] = torch.tensor(float(len(rows)))
        return batch


class InstructCollate:
    """Stage 3: interleaved prompts and the image that each asks for.

    Gives `input_ids` (B, T), `image_embeds_position_mask` (B, T), `target_pixels` (B, 3, H, W) in [-1, 1], `seed` (B,),
    `weight` () the number of rows, and `pixel_values` (N, 3, S, S) if there are images. Sequences have no `</s>`.

    Args:
        processor: tokens and pixels.
        image_size: H and W of the target, pixels.
        length: longest row in tokens; what is beyond it is cut, images only whole.
        templates: the random choices.
        kinds: for each source of the mixture, "composition", "edit" or "t2i". None: the sources are named so.
    """

    def __init__(
        self,
        processor: KosmosGProcessor,
        image_size: int = 512,
        length: int = 2048,
        templates: InstructTemplates | None = None,
        kinds: Mapping[str, str] | None = None,
    ) -> None:
        self.processor = processor
        self.kinds = _known("instruct", kinds, INSTRUCT_KINDS)
        self.image_size = image_size
        self.length = _room_for_an_image(length, processor)
        self.templates = templates or InstructTemplates()

    def __call__(self, samples: Sequence[KeyedRecord]) -> Batch:
        rows, targets = [], []
        for draw, record in samples:
            example = self.example(draw, record)
            ids, slots, images = fit(*self.processor.sequence(example.parts), self.length, self.processor)
            rows.append(BatchRow(ids, slots, draw.seed, images))
            targets.append(target_pixels(example.target, self.image_size))
        batch = pad_rows(rows, self.processor)
        batch["target_pixels"] = torch.stack(targets)
        batch["weight"] = torch.tensor(float(len(rows)))
        return batch

    def example(self, draw: SampleKey, record: Record) -> Example:
        """Prompt and target of one sample, before they become tensors."""
        kind = _kind(self.kinds, draw)
        make = {"composition": self.templates.composition, "edit": self.templates.edit, "t2i": self.templates.t2i}[kind]
        return make(record, numbers(draw.seed))


def numbers(seed: int) -> Draws:
    """The uniform numbers of one sample, in order."""
    return random.Random(seed).random


def pad_rows(rows: Sequence[BatchRow], processor: KosmosGProcessor, least: int = 0) -> Batch:
    """Stacks rows to the length of the longest (and to `least` tokens), with `<pad>` on the right."""
    if not rows:
        raise DataError("a batch came out empty: its records hold no text and no image; look at the dataset")
    shape = (len(rows), max(least, *(len(row.ids) for row in rows)))
    batch = {
        "input_ids": torch.full(shape, processor.pad_id, dtype=torch.long),
        "image_embeds_position_mask": torch.zeros(shape, dtype=torch.bool),
        # Seeds may use all 64 bits; a torch long has a sign.
        "seed": torch.tensor([row.seed & (2**63 - 1) for row in rows], dtype=torch.long),
    }
    if rows[0].labels is not None:
        batch["labels"] = torch.full(shape, IGNORED, dtype=torch.long)
    for index, row in enumerate(rows):
        here = slice(0, len(row.ids))
        batch["input_ids"][index, here] = torch.tensor(row.ids)
        batch["image_embeds_position_mask"][index, here] = torch.tensor(row.slots)
        if row.labels is not None:
            batch["labels"][index, here] = torch.tensor(row.labels)
    images = [image for row in rows for image in row.images]
    if images:
        batch["pixel_values"] = torch.stack([processor.pixels(image) for image in images])
    return batch


def fit(
    ids: list[int], slots: list[bool], images: list[Image.Image], length: int, processor: KosmosGProcessor
) -> tuple[list[int], list[bool], list[Image.Image]]:
    """Cuts a row to `length` tokens; an image that would be cut apart goes whole."""
    if len(ids) <= length:
        return ids, slots, images
    end = length
    while ids[end - 1] == processor.image_id:
        end -= 1
    kept = ids[:end].count(processor.image_end_id)
    return ids[:end], slots[:end], images[:kept]


def target_pixels(image: Image.Image, size: int) -> Tensor:
    """The image to be drawn as (3, size, size) in [-1, 1]: shorter side to `size` (bilinear), centre crop."""
    width, height = image.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return values.float() / 127.5 - 1.0


def _known(stage: str, kinds: Mapping[str, str] | None, known: Sequence[str]) -> dict[str, str]:
    if kinds is None:
        return {kind: kind for kind in known}
    for source, kind in kinds.items():
        if kind not in known:
            raise ConfigError(f"{stage} cannot use source {source!r} as {kind!r}; it knows {', '.join(known)}")
    return dict(kinds)


def _kind(kinds: Mapping[str, str], draw: SampleKey) -> str:
    if draw.source not in kinds:
        raise ConfigError(f"source {draw.source!r} has no kind; this stage was told of {', '.join(kinds)}")
    return kinds[draw.source]


def _room_for_an_image(length: int, processor: KosmosGProcessor) -> int:
    least = processor.num_image_tokens + 4  # <s>, <image>, slots, </image>, one token
    if length < least:
        raise ConfigError(f"rows of {length} tokens cannot hold one image; set a length of at least {least}")
    return length
