"""What the tests of the pipeline call it with, and how they compare what it gives."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from kosmosg import Prompt

RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (30, 40), "blue")
PROMPT = Prompt("<i> in the style of <i>", images=[RED, BLUE])
DRAW: dict[str, Any] = {"num_inference_steps": 3, "output_type": "np"}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def distance(one: Any, other: Any) -> float:
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())
