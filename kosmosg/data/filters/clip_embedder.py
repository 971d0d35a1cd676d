"""Images and captions as unit vectors of a CLIP, for the filters that compare or score them."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPProcessor

from kosmosg.data.annotators.pretrained import Loading, load_pretrained


class ClipEmbedder:
    """A CLIP by hub id or folder; D is its projection dimension.

    Args:
        model: hub id or local folder of a CLIP.
        loading: device and precision.

    Raises DataError when there is no such model, or one of another kind.
    """

    def __init__(self, model: str, loading: Loading) -> None:
        self.network, self.processor, self.name = load_pretrained(
            CLIPModel, CLIPProcessor, model, loading, complete=True
        )

    @torch.inference_mode()
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """(N, D) float32 of length 1."""
        pixels = self.processor(images=list(images), return_tensors="pt")["pixel_values"]
        pixels = pixels.to(self.network.device, self.network.dtype)
        return _unit(self.network.visual_projection(self.network.vision_model(pixels).pooler_output))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D) float32 of length 1; what is beyond CLIP's 77 tokens is cut."""
        longest = int(self.network.config.text_config.max_position_embeddings)
        tokens = self.processor(
            text=list(texts), padding=True, truncation=True, max_length=longest, return_tensors="pt"
        ).to(self.network.device)
        states = self.network.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return _unit(self.network.text_projection(states))


def _unit(vectors: Tensor) -> Tensor:
    return torch.nn.functional.normalize(vectors.float(), dim=-1)
