"""A tiny model, its processor, a tiny decoder and a few records: everything that a stage needs, in milliseconds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from kosmosg.config import KosmosGConfig
from kosmosg.data.image_bytes import encode_image, encode_mask
from kosmosg.diffusion.decoder import FrozenDecoder
from kosmosg.model import KosmosG
from kosmosg.pipeline import KosmosGPipeline
from kosmosg.processor import KosmosGProcessor

COLOURS = {"red": (230, 30, 30), "green": (30, 200, 60), "blue": (40, 60, 230), "white": (240, 240, 240)}


@dataclass(frozen=True)
class Place:
    """A place in the sample order, as the platform's `Draw`."""

    source: str
    seed: int


@pytest.fixture(scope="session")
def processor(tiny_sentencepiece: Path) -> KosmosGProcessor:
    return KosmosGProcessor.from_sentencepiece(tiny_sentencepiece, image_size=32, num_image_tokens=4, max_length=500)


@pytest.fixture
def new_model(processor: KosmosGProcessor) -> Callable[..., KosmosG]:
    """A new model, the same one for the same seed; `dropout=0` by default, so that two passes agree."""

    def build(seed: int = 0, dropout: float = 0.0) -> KosmosG:
        torch.manual_seed(seed)
        config = KosmosGConfig.tiny(vocab_size=processor.vocab_size)
        config.text_config.dropout = dropout
        return KosmosG(config)

    return build


@pytest.fixture
def decoder(tiny_sd_parts: Path) -> FrozenDecoder:
    return FrozenDecoder.from_pretrained(tiny_sd_parts)


@pytest.fixture
def stock(tiny_sd_parts: Path) -> StableDiffusionPipeline:
    """Stable Diffusion as diffusers has it, of the tiny parts."""
    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd_parts, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def pipe(tiny_model: KosmosG, tiny_processor: KosmosGProcessor, stock: StableDiffusionPipeline) -> KosmosGPipeline:
    """Ours, of the same parts."""
    made = KosmosGPipeline(model=tiny_model, processor=tiny_processor, decoder=stock)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="session")
def compositions() -> list[dict[str, Any]]:
    """Two coloured squares on a ground, as composition records; 16 x 16 pixels."""
    records = []
    for number, (left, right) in enumerate([("red", "green"), ("blue", "white"), ("green", "blue"), ("white", "red")]):
        image = np.full((16, 16, 3), 90, dtype=np.uint8)
        image[4:12, 1:7] = COLOURS[left]
        image[4:12, 9:15] = COLOURS[right]
        caption, entities = "", []
        for word, colour in (("a ball", left), (" and a gem", right)):
            start = len(caption) + len(word) - len(word.split()[-1])
            caption += word
            crop = np.full((8, 8, 3), 90, dtype=np.uint8)
            crop[1:7, 1:7] = COLOURS[colour]
            mask = np.zeros((8, 8), dtype=bool)
            mask[1:7, 1:7] = True
            entities.append(
                {
                    "text": word.split()[-1],
                    "start": start,
                    "end": len(caption),
                    "crop": encode_image(Image.fromarray(crop)),
                    "mask": encode_mask(mask),
                }
            )
        image_bytes = encode_image(Image.fromarray(image))
        records.append(
            {"id": str(number), "caption": caption + " in the snow.", "image": image_bytes, "entities": entities}
        )
    return records


@pytest.fixture(scope="session")
def place() -> type[Place]:
    return Place


def fit(stage: Any, batch: dict[str, torch.Tensor], steps: int, lr: float) -> list[float]:
    """Losses of so many AdamW steps on one batch."""
    optimizer = torch.optim.AdamW([parameter for _, parameter in stage.trainable()], lr=lr)
    losses = []
    for _ in range(steps):
        loss = stage(batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.fixture(scope="session")
def train() -> Callable[..., list[float]]:
    return fit


def gradients_of(stage: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Loss under the name "loss", and the gradient of every trained parameter."""
    stage.zero_grad(set_to_none=True)
    loss = stage(batch).loss
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in stage.trainable() if parameter.grad is not None}
    return {"loss": loss.detach(), **found}


@pytest.fixture(scope="session")
def gradients() -> Callable[..., dict[str, torch.Tensor]]:
    return gradients_of
