"""CLIP: images and sentences in one space, for CLIP-I and CLIP-T.

ViT-B/32 of Radford et al. 2021 (arXiv 2103.00020), `openai/clip-vit-base-patch32`: features (N, 512).
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from kosmosg.eval.features.base import BATCH, Features, TransformersNetwork, as_features
from kosmosg.eval.features.preprocessing import Framing
from kosmosg.eval.protocol import CLIP


class ClipImages(TransformersNetwork):
    """CLIP's projected image embedding, the image prepared by CLIP's own processor."""

    name = CLIP
    model_type = "clip"

    def __init__(self, source: str, framing: Framing | None = None) -> None:
        from transformers import CLIPModel

        # The processor that works on PIL images: the one on tensors resizes differently.
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        self.model = self.load(CLIPModel, source)
        self.processor = self.load_processor(CLIPImageProcessorPil, source)

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Features:
        """(N, D), one row an RGB image of any size."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"].to(self.model.device)
        return as_features(self.model.visual_projection(self.model.vision_model(pixels).pooler_output))


class ClipTexts(TransformersNetwork):
    """CLIP's projected text embedding."""

    name = CLIP
    model_type = "clip"

    def __init__(self, source: str) -> None:
        from transformers import CLIPModel, CLIPTokenizer

        self.model = self.load(CLIPModel, source)
        self.tokenizer = self.load_processor(CLIPTokenizer, source)

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Features:
        """(N, D); what is beyond CLIP's 77 tokens is cut, as its processor does."""
        longest = int(self.model.config.text_config.max_position_embeddings)
        parts = []
        for start in range(0, len(texts), BATCH):
            tokens = self.tokenizer(
                list(texts[start : start + BATCH]),
                padding=True,
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
            states = self.model.text_model(**tokens.to(self.model.device)).pooler_output
            parts.append(as_features(self.model.text_projection(states)))
        return np.concatenate(parts)
