"""Batches of stage 3: interleaved prompts and their target images."""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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
from kosmosg.data.precomputed import POSTERIOR, unpack
from kosmosg.data.templates.instruct import Example, InstructTemplates, Record
from kosmosg.errors import ConfigError
from kosmosg.processor import KosmosGProcessor


class InstructCollate:
    """Returns `input_ids` (B, T), `image_embeds_position_mask` (B, T), `target_pixels` (B, 3, H, W) in [-1, 1], `seed`
    (B,), `weight` () the number of rows, and `pixel_values` (N, 3, S, S) if there are images. With `latent_shape` there
    is `target_posterior` (B, 2, c, h, w) in place of `target_pixels`.

    Sequences have no `</s>`.

    Args:
        processor: tokens and pixels.
        image_size: H and W of the target, pixels.
        length: maximum row length in tokens; longer rows are truncated, without splitting images.
        templates: the random choices.
        latent_shape: (c, h, w); if given, records have the precomputed column `target_posterior`, and their target is
            not decoded.
        scaled_decoding: whether images of the prompt may be decoded at a fraction of their size, no smaller than the
            vision tower's input: see `kosmosg.data.image_bytes.decode_image`.
    """

    def __init__(
        self,
        processor: KosmosGProcessor,
        image_size: int = 512,
        length: int = 2048,
        templates: InstructTemplates | None = None,
        latent_shape: tuple[int, int, int] | None = None,
        scaled_decoding: bool = False,
    ) -> None:
        self.processor = processor
        self.image_size = image_size
        self.length = room_for_an_image(length, processor)
        self.templates = templates or InstructTemplates()
        self.latent_shape = latent_shape
        self.at_least = processor.image_size if scaled_decoding else 0

    def __call__(self, samples: Sequence[KeyedRecord]) -> Batch:
        rows, targets = [], []
        for key, record in samples:
            example = self.example(key, record)
            ids, slots, images = fit(*self.processor.sequence(example.parts), self.length, self.processor)
            rows.append(BatchRow(ids, slots, key.seed, images))
            if self.latent_shape:
                targets.append(unpack(record, POSTERIOR, (2, *self.latent_shape)))
            else:
                targets.append(target_pixels(example.target, self.image_size))
        batch = pad_rows(rows, self.processor)
        batch[POSTERIOR if self.latent_shape else "target_pixels"] = torch.stack(targets)
        batch["weight"] = torch.tensor(float(len(rows)))
        return batch

    def example(self, key: SampleKey, record: Record) -> Example:
        """Prompt and target of one sample, before it becomes tensors."""
        templates = self.templates
        makers = {"composition": templates.composition, "edit": templates.edit, "t2i": templates.t2i}
        template = template_of("instruct", key)
        if template not in makers:
            raise ConfigError(f"instruct has no template {template!r}; it has {', '.join(makers)}")
        return makers[template](record, numbers(key.seed), self.at_least)


def target_pixels(image: Image.Image, size: int) -> Tensor:
    """The image to be generated as (3, size, size) in [-1, 1]: shorter side to `size` (bilinear), centre crop."""
    width, height = image.size
    short = min(width, height)
    width, height = size * width // short, size * height // short
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - size) / 2), round((height - size) / 2)
    image = image.crop((left, top, left + size, top + size))
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return values.float() / 127.5 - 1.0
