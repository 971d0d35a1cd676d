"""DINO: what DreamBench compares the subject of two images by.

ViT-S/16 of Caron et al. 2021 (arXiv 2104.14294), `facebook/dino-vits16`: features (N, 384).
"""

from collections.abc import Sequence

import torch
from PIL import Image

from kosmosg.eval.features.base import Features, TransformersNetwork, as_features
from kosmosg.eval.features.preprocessing import Framing, imagenet
from kosmosg.eval.protocol import DINO


class Dino(TransformersNetwork):
    """DINO ViT in transformers' layout: the last state of its class token."""

    name = DINO
    model_type = "vit"

    def __init__(self, source: str, framing: Framing | None = None) -> None:
        from transformers import ViTModel

        self.model = self.load(ViTModel, source, add_pooling_layer=False)

    @torch.no_grad()
    def images(self, images: Sequence[Image.Image]) -> Features:
        """(N, D), one row an RGB image of any size."""
        pixels = torch.stack([imagenet(image) for image in images]).to(self.model.device)
        other_size = int(self.model.config.image_size) != pixels.shape[-1]
        return as_features(self.model(pixels, interpolate_pos_encoding=other_size).last_hidden_state[:, 0])
