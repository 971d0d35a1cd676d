"""Parameter initialisation: Magneto's gains on torch's defaults, Xavier where the original uses it.

Every value is set through `transformers.initialization`, which skips values loaded from a checkpoint.
"""

from __future__ import annotations

import math

from torch import nn
from transformers import initialization as init


class Initialised(nn.Module):
    """A module that initialises its own parameters and buffers (not those of its children)."""

    def init_parameters(self) -> None:
        """Set every own parameter and buffer through `transformers.initialization`, which skips loaded ones."""
        raise NotImplementedError


def linear(inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = True) -> nn.Linear:
    """A projection initialised like torch's default, U(+-gain / sqrt(inputs)) for weight and bias alike.

    The original calls no initialiser on its layers but multiplies some of torch's defaults by Magneto's gain.
    """
    layer = nn.Linear(inputs, outputs, bias=bias)
    layer.init_gain = gain  # type: ignore[assignment]
    return layer


def xavier_linear(inputs: int, outputs: int, *, gain: float, zero_bias: bool = False) -> nn.Linear:
    """A Xavier-uniform projection, as in the resampler's attention (fairseq's `MultiheadAttention`)."""
    layer = nn.Linear(inputs, outputs)
    layer.init_xavier = gain  # type: ignore[assignment]
    layer.init_zero_bias = zero_bias  # type: ignore[assignment]
    return layer


def init_linear(layer: nn.Linear) -> None:
    """Initialise a projection made by `linear` or `xavier_linear`; any other one as torch does."""
    bound = getattr(layer, "init_gain", 1.0) / math.sqrt(layer.in_features)
    xavier = getattr(layer, "init_xavier", None)
    if xavier is None:
        init.uniform_(layer.weight, -bound, bound)
    else:
        init.xavier_uniform_(layer.weight, gain=xavier)
    if layer.bias is None:
        return
    if getattr(layer, "init_zero_bias", False):
        init.zeros_(layer.bias)
    else:
        init.uniform_(layer.bias, -bound, bound)
