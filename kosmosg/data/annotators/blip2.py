"""Captions from BLIP-2 (the original used `Salesforce/blip2-opt-2.7b`, greedy, at most 20 new tokens, no prompt)."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.data.annotators.pretrained import Loading, PretrainedSettings, load_pretrained


@dataclass(frozen=True)
class Blip2Settings(PretrainedSettings):
    """Settings of `blip2`."""

    model: str = "Salesforce/blip2-opt-2.7b"
    """Hub id or local folder of any BLIP-2 with a language model."""
    max_new_tokens: int = 20
    """Length limit of a caption."""


class Blip2Captioner:
    """One greedy caption per image, so that building a dataset twice gives the same captions.

    Args:
        model: hub id or local folder of any BLIP-2 with a language model.
        device: torch device; auto is the GPU where there is one.
        dtype: auto is float16 on a GPU, float32 on a CPU.
        max_new_tokens: length limit of a caption.
    """

    fills = "caption"
    settings = Blip2Settings
    hint = ""

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto", max_new_tokens: int = 20) -> None:
        self.network, self.processor, self.name = load_pretrained(
            Blip2ForConditionalGeneration, Blip2Processor, model, Loading(device, dtype)
        )
        self.max_new_tokens = max_new_tokens

    def size(self, sample: Sample) -> tuple[int, int]:
        """Height and width as encoded. All are resized to the model's input, several of one size in one operation
        where the processor can (transformers with torchvision); there is no padding."""
        try:
            with Image.open(io.BytesIO(sample.encoded)) as header:
                return header.height, header.width
        except (OSError, ValueError, Image.DecompressionBombError):
            return 0, 0  # it is rejected when its turn to be decoded comes

    @torch.inference_mode()
    def __call__(self, samples: Sequence[Sample]) -> list[str | Rejection]:
        pictures = [sample.image for sample in samples]
        pixels = self.processor(images=pictures, return_tensors="pt")["pixel_values"]
        ids = self.network.generate(
            pixel_values=pixels.to(self.network.device, self.network.dtype),
            max_new_tokens=self.max_new_tokens,
            do_sample=False,
        )
        texts = [" ".join(text.split()) for text in self.processor.batch_decode(ids, skip_special_tokens=True)]
        return [text or Rejection("no-caption", f"{self.name} had nothing to say about the image") for text in texts]
