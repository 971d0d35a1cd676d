"""Messages between the parts of the endpoint. Plain values and numpy, so that passing them on needs no torch.

Letters: n images, Q queries, D width of the condition, H W pixels.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

ImageArray = np.ndarray[Any, np.dtype[np.uint8]]
"""(n, H, W, 3)"""

Embeddings = np.ndarray[Any, np.dtype[np.float32]]
"""(Q, D)"""


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as a condition, and the tokens it took."""

    positive: Embeddings
    negative: Embeddings
    tokens: int  # of the prompt, including image slots
    cached: bool  # whether nothing had to be encoded


@dataclass(frozen=True)
class ImageRequest:
    """One request as the step engine sees it: n images of one condition."""

    positive: Embeddings
    negative: Embeddings
    seeds: tuple[int, ...]  # one per image; image i is the same whether it is generated alone or in a batch
    height: int  # pixels
    width: int  # pixels
    steps: int = 20
    guidance: float = 3.0  # classifier-free guidance scale; at 1 or below the negative is not computed at all
    scheduler: str | None = None  # a name of kosmosg.diffusion.schedulers.SCHEDULERS; None is the decoder's own
    previews: int = 0  # partial results along the way, evenly spaced


@dataclass(frozen=True)
class DenoisingProgress:
    """`step` of `steps` is done."""

    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """Partial images, decoded from the network's current estimate of the clean latents."""

    step: int
    steps: int
    images: ImageArray


@dataclass(frozen=True)
class Finished:
    """The images, and the U-Net evaluations (rows) they took."""

    images: ImageArray
    evaluations: int


Event = DenoisingProgress | Preview | Finished


@dataclass(frozen=True)
class DecoderInfo:
    """Properties of the loaded encoder and decoder."""

    native_size: int  # pixels per side that the decoder was trained at
    size_step: int  # widths and heights are multiples of this many pixels
    schedulers: tuple[str, ...]
    queries: int  # Q
    width: int  # D
