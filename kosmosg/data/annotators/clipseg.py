"""Masks from CLIPSeg, which segments by text (the original used `CIDAS/clipseg-rd64-refined` in fp16)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from kosmosg.data.annotators.base import EntityMask, Sample
from kosmosg.data.annotators.pretrained import Loading, PretrainedSettings, load_pretrained

DECODED_AT_ONCE = 64
"""Entities whose maps are decoded together: an image with many entities needs no more memory than one with few."""


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
        asked = [sample for sample in samples if sample.spans]
        cuts: list[list[EntityMask]] = [[] for _ in asked]
        if not asked:
            return [[] for _ in samples]
        # Every image and every word once, however many entities an image has and however often a word comes.
        activations = self._image_activations(asked)
        words = list(dict.fromkeys(span.text for sample in asked for span in sample.spans))
        conditions = self._word_conditions(words)
        questions = [(row, words.index(span.text)) for row, sample in enumerate(asked) for span in sample.spans]
        for start in range(0, len(questions), DECODED_AT_ONCE):
            part = questions[start : start + DECODED_AT_ONCE]
            rows, texts = [row for row, _ in part], [text for _, text in part]
            logits = self.network.decoder([layer[rows] for layer in activations], conditions[texts]).logits.float()
            # One question alone comes back without its batch dimension.
            for row, found in zip(rows, logits.reshape(len(part), 1, 1, *logits.shape[-2:]), strict=True):
                image = asked[row].image
                cuts[row].append(EntityMask(self._probability(found, image.height, image.width)))
        found_in_turn = iter(cuts)
        return [next(found_in_turn) if sample.spans else [] for sample in samples]

    def _image_activations(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """Hidden states (B, P, D) of the layers that the decoder reads."""
        pixels = self.processor(images=[sample.image for sample in samples], return_tensors="pt")["pixel_values"]
        found = self.network.clip.get_image_features(
            pixel_values=pixels.to(self.network.device, self.network.dtype),
            output_hidden_states=True,
            interpolate_pos_encoding=True,
        )
        return [found.hidden_states[layer + 1] for layer in self.network.extract_layers]

    def _word_conditions(self, words: Sequence[str]) -> torch.Tensor:
        """Text features (N, D)."""
        batch = self.processor(text=list(words), return_tensors="pt", padding=True, truncation=True)
        features = self.network.clip.get_text_features(
            batch["input_ids"].to(self.network.device), attention_mask=batch["attention_mask"].to(self.network.device)
        )
        pooled: torch.Tensor = features.pooler_output
        return pooled

    @staticmethod
    def _probability(logits: torch.Tensor, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        full = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return (full.sigmoid()[0, 0] * 255).round().to(torch.uint8).cpu().numpy()
