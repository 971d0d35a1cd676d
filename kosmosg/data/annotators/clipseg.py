"""Masks from CLIPSeg, which segments by text (the original used `CIDAS/clipseg-rd64-refined` in fp16)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from kosmosg.data.annotators.base import EntityMask, Sample
from kosmosg.data.annotators.pretrained import Loading, PretrainedSettings, load_pretrained


@dataclass(frozen=True)
class ClipSegSettings(PretrainedSettings):
    """Settings of `clipseg`."""

    model: str = "CIDAS/clipseg-rd64-refined"
    """Hub id or local folder of a CLIPSeg."""


class ClipSegSegmenter:
    """A probability for every pixel and every entity; the logits (352 x 352) are first resized to the image's size.

    Args:
        model: hub id or local folder of a CLIPSeg.
        device: torch device; auto is the GPU where there is one.
        dtype: auto is float16 on a GPU, float32 on a CPU.
    """

    fills = "masks"
    settings = ClipSegSettings
    hint = ""

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto") -> None:
        self.network, self.processor, self.name = load_pretrained(
            CLIPSegForImageSegmentation, CLIPSegProcessor, model, Loading(device, dtype)
        )

    @torch.inference_mode()
    def __call__(self, samples: Sequence[Sample]) -> list[list[EntityMask]]:
        questions = [(sample.image, span.text) for sample in samples for span in sample.spans]
        if not questions:
            return [[] for _ in samples]
        batch = self.processor(
            text=[text for _, text in questions],
            images=[image for image, _ in questions],
            return_tensors="pt",
            padding=True,
            truncation=True,
        ).to(self.network.device)
        logits = self.network(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            pixel_values=batch["pixel_values"].to(self.network.dtype),
        ).logits.float()
        # A single text comes back without its batch dimension.
        maps = logits.reshape(len(questions), 1, *logits.shape[-2:])
        cuts = (
            EntityMask(self._probability(maps[i : i + 1], image.height, image.width))
            for i, (image, _) in enumerate(questions)
        )
        return [[next(cuts) for _ in sample.spans] for sample in samples]

    @staticmethod
    def _probability(logits: torch.Tensor, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        full = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return (full.sigmoid()[0, 0] * 255).round().to(torch.uint8).cpu().numpy()
