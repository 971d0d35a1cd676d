"""Masks from CLIPSeg, which segments by text (the original used `CIDAS/clipseg-rd64-refined` in fp16)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

from kosmosg.data.annotators.apply import batches, largest_first
from kosmosg.data.annotators.base import EntityMask, Sample
from kosmosg.data.annotators.pretrained import Loading, PretrainedSettings, load_pretrained
from kosmosg.errors import ConfigError


@dataclass(frozen=True)
class ClipSegSettings(PretrainedSettings):
    """Settings of `clipseg`."""

    model: str = "CIDAS/clipseg-rd64-refined"
    """Hub id or local folder of a CLIPSeg."""
    entities_at_once: int = 64
    """Entities, of all images of a batch together, that the text encoder and the decoder see at once."""

    def __post_init__(self) -> None:
        if self.entities_at_once < 1:
            raise ConfigError(f"entities_at_once is {self.entities_at_once}; it is at least 1")


class ClipSegSegmenter:
    """A probability for every pixel and every entity; the logits (352 x 352) are first resized to the image's size.

    Beside the answers themselves (a byte per pixel and entity), memory grows with the images of a batch and with
    `entities_at_once`, not with how many entities the images have.

    Args:
        model: hub id or local folder of a CLIPSeg.
        device: torch device; auto is the GPU where there is one.
        dtype: auto is float16 on a GPU, float32 on a CPU.
        entities_at_once: entities that the text encoder and the decoder see at once.
    """

    fills = "masks"
    settings = ClipSegSettings
    hint = ""

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto", entities_at_once: int = 64) -> None:
        self.network, self.processor, self.name = load_pretrained(
            CLIPSegForImageSegmentation, CLIPSegProcessor, model, Loading(device, dtype)
        )
        self.entities_at_once = entities_at_once

    @torch.inference_mode()
    def __call__(self, samples: Sequence[Sample]) -> list[list[EntityMask]]:
        asked = [sample for sample in samples if sample.spans]
        cuts: list[list[EntityMask]] = [[] for _ in asked]
        if not asked:
            return [[] for _ in samples]
        # Every image and every phrase once, however many entities an image has and however often a phrase comes.
        activations = self._image_activations(asked)
        numbers: dict[str, int] = {}
        for sample in asked:
            for span in sample.spans:
                numbers.setdefault(span.text, len(numbers))
        conditions = self._phrase_conditions(list(numbers))
        questions = [(row, numbers[span.text]) for row, sample in enumerate(asked) for span in sample.spans]
        for part in batches(questions, self.entities_at_once):
            rows, phrases = [row for row, _ in part], [phrase for _, phrase in part]
            logits = self.network.decoder([layer[rows] for layer in activations], conditions[phrases]).logits.float()
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

    def _phrase_conditions(self, phrases: Sequence[str]) -> torch.Tensor:
        """Text features (N, D), of phrases of like length together."""
        device = self.network.device
        lengths = [len(ids) for ids in self.processor.tokenizer(list(phrases), truncation=True)["input_ids"]]
        order = largest_first(lengths)
        features: list[torch.Tensor] = []
        for part in batches(order, self.entities_at_once):
            batch = self.processor(
                text=[phrases[index] for index in part], return_tensors="pt", padding=True, truncation=True
            )
            found = self.network.clip.get_text_features(
                batch["input_ids"].to(device), attention_mask=batch["attention_mask"].to(device)
            )
            features.append(found.pooler_output)
        return torch.cat(features)[torch.tensor(order).argsort()]

    @staticmethod
    def _probability(logits: torch.Tensor, height: int, width: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        full = torch.nn.functional.interpolate(logits, (height, width), mode="bilinear", align_corners=False)
        return (full.sigmoid()[0, 0] * 255).round().to(torch.uint8).cpu().numpy()
