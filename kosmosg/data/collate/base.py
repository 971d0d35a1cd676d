"""Shared by the collates of all stages, which turn records into one training batch.

A collate takes a list of (key, record). The key says which source the record came from, and has the seed from which
every random choice for this sample follows; so a sample does not depend on the worker that builds it, or on its batch.
A source has the name of its sample kind (`kosmosg.data.records.stage_samples`). A batch has as many rows as samples.
Rows are padded on the right and there is no attention mask: the model is causal and its losses skip or expect the pads.

Shape legend: B rows, T tokens of the longest row, N images of the batch in reading order, S pixels per side of an input
image, Q tokens of a CLIP caption.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor

from kosmosg.data.records import stage_samples
from kosmosg.data.templates.instruct import Record, Uniform
from kosmosg.data.templates.pretrain import IGNORED
from kosmosg.errors import ConfigError, DataError
from kosmosg.processor import KosmosGProcessor


class SampleKey(Protocol):
    """One position in the sample order: the source, and the seed of everything random about the sample."""

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


def template_of(stage: str, key: SampleKey) -> str:
    """The template that the stage applies to a source's records: that of the sample kind, or the one it refers to.

    Raises ConfigError for a source that the stage cannot read.
    """
    samples = stage_samples(stage)
    if key.source not in samples:
        raise ConfigError(f"{stage} cannot read samples of {key.source!r}; it knows {', '.join(samples)}")
    return samples[key.source][1].template or key.source


def numbers(seed: int) -> Uniform:
    """The uniform random numbers of one sample, in order."""
    return random.Random(seed).random


def pad_rows(rows: Sequence[BatchRow], processor: KosmosGProcessor, least: int = 0) -> Batch:
    """Stacks rows to the length of the longest (and to `least` tokens), with `<pad>` on the right."""
    if not rows:
        raise DataError("a batch came out empty: its records hold no text and no image; look at the dataset")
    shape = (len(rows), max(least, *(len(row.ids) for row in rows)))
    batch = {
        "input_ids": torch.full(shape, processor.pad_id, dtype=torch.long),
        "image_embeds_position_mask": torch.zeros(shape, dtype=torch.bool),
        # Seeds may use all 64 bits; a torch long is signed.
        "seed": torch.tensor([row.seed & (2**63 - 1) for row in rows], dtype=torch.long),
        "tokens": torch.tensor(float(sum(len(row.ids) for row in rows))),  # without pads, for the log
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
    """Truncates a row to `length` tokens; an image that does not fit completely is dropped."""
    if len(ids) <= length:
        return ids, slots, images
    end = length
    while ids[end - 1] == processor.image_id:
        end -= 1
    kept = ids[:end].count(processor.image_end_id)
    return ids[:end], slots[:end], images[:kept]


def room_for_an_image(length: int, processor: KosmosGProcessor) -> int:
    least = processor.num_image_tokens + 4  # <s>, <image>, slots, </image>, one token
    if length < least:
        raise ConfigError(f"rows of {length} tokens cannot hold one image; set a length of at least {least}")
    return length
