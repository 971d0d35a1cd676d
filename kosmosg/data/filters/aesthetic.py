"""Turns down images that people would not like, by a linear head over CLIP's image embedding (LAION-Aesthetics)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from kosmosg.data.annotators.base import Rejection, Sample
from kosmosg.data.annotators.pretrained import Loading, PretrainedSettings
from kosmosg.data.filters.clip_embedder import ClipEmbedder
from kosmosg.errors import DataError

WEIGHTS = "model.safetensors"


@dataclass(frozen=True)
class AestheticSettings(PretrainedSettings):
    """What `aesthetic` takes."""

    model: str = "openai/clip-vit-large-patch14"
    """Hub id or local folder of the CLIP that the head was trained for."""
    head: str = "ttj/sac-logos-ava1-l14-linearMSE"
    """The head: a .safetensors file, a folder with model.safetensors, or a hub id."""
    min_score: float = 4.5
    """Score, at least; about 1 to 10. LAION's aesthetic sets begin at 4.5, 5, 6."""

    def require(self) -> None:
        """The head as well. Raises DataError."""
        super().require()
        head_file(self.head)


class AestheticFilter:
    """The score of an image: the head's answer to its unit vector.

    Args:
        model: hub id or local folder of the CLIP that the head was trained for.
        device: torch device; auto is the GPU where there is one.
        dtype: of the CLIP; auto is float16 on a GPU, float32 on a CPU.
        head: a .safetensors file, a folder with model.safetensors, or a hub id.
        min_score: score, at least.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    settings = AestheticSettings

    def __init__(
        self, model: str, device: str = "auto", dtype: str = "auto", head: str = "", min_score: float = 4.5
    ) -> None:
        self.embedder = ClipEmbedder(model, Loading(device, dtype))
        self.name = f"{self.embedder.name} + {head}"
        self.min_score = min_score
        network = self.embedder.network
        self.layers = [
            (weight.to(network.device), bias.to(network.device))
            for weight, bias in linear_head(head, int(network.config.projection_dim))
        ]

    def __call__(self, samples: Sequence[Sample]) -> list[Rejection | None]:
        return [
            None
            if score >= self.min_score
            else Rejection("low-aesthetic", f"a score of {score:.2f}, less than {self.min_score:g}")
            for score in self.scores(samples)
        ]

    @torch.inference_mode()
    def scores(self, samples: Sequence[Sample]) -> list[float]:
        """The score of each sample's image."""
        states = self.embedder.images([sample.image for sample in samples])
        for weight, bias in self.layers:
            states = states @ weight.T + bias
        scores: list[float] = states[:, 0].tolist()
        return scores


def linear_head(head: str, dimension: int) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of the layers, in their order: linear ones with nothing between, as in LAION's `linearMSE`.

    They must lead from `dimension` numbers to one. Raises DataError.
    """
    path = head_file(head)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise DataError(f"the head {head!r} is no safetensors file ({error})") from error
    names = sorted(
        (name.removesuffix("weight") for name in tensors if name.endswith("weight")),
        key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)],
    )
    layers = []
    width = dimension
    for name in names:
        weight = tensors[f"{name}weight"].float()
        if weight.ndim != 2 or weight.shape[1] != width:
            raise DataError(
                f"the head {head!r} does not fit: {name}weight is {tuple(weight.shape)}, it gets {width} numbers "
                f"(the CLIP gives {dimension})"
            )
        width = weight.shape[0]
        bias = tensors.get(f"{name}bias", torch.zeros(width)).float()
        if bias.shape != (width,):
            raise DataError(f"the head {head!r} does not fit: {name}bias is {tuple(bias.shape)}, not ({width},)")
        layers.append((weight, bias))
    if not layers or width != 1:
        raise DataError(f"the head {head!r} ends in {width if layers else 'no'} numbers; a score is one")
    return layers


def head_file(head: str) -> Path:
    """The file of a head, downloaded where it is a hub id. Raises DataError."""
    path = Path(head)
    if path.is_file():
        return path
    if path.is_dir() and (path / WEIGHTS).is_file():
        return path / WEIGHTS
    try:
        return Path(hf_hub_download(head, WEIGHTS))
    except (OSError, ValueError) as error:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise DataError(
            f"the head {head!r} is neither a .safetensors file, nor a folder with {WEIGHTS}, nor one that the hub "
            f"gives ({type(error).__name__}: {first})"
        ) from error
