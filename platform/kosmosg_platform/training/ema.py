"""An exponential moving average (EMA) of the weights, sharded over the workers."""

from collections.abc import Mapping

import torch
from torch import Tensor

from kosmosg_platform.training.engine import Engine


class WeightEma:
    """Exponential moving average of the parameters in `names`, in fp32; each worker keeps the ones it writes.

    The decay starts lower, at (1 + n) / (10 + n), so that the random initial weights are soon forgotten. In ZeRO-3,
    every update gathers all weights once.
    """

    def __init__(self, engine: Engine, names: set[str], decay: float, state: Mapping[str, Tensor] | None) -> None:
        self._engine = engine
        self._names = names
        self._decay = decay
        if state is None or not any(name.startswith("ema.") for name in state):  # or of a run without an average
            self.tensors = {name: weight.float().clone() for name, weight in engine.full_weights(names)}
        else:
            self.tensors = {name: state[f"ema.{name}"].to(engine.device) for name in sorted(names)}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update with the weights after optimizer step `step` (0-based)."""
        decay = min(self._decay, (1 + step) / (10 + step))
        for name, weight in self._engine.full_weights(self._names):
            self.tensors[name].lerp_(weight.float(), 1 - decay)

    def state(self) -> dict[str, Tensor]:
        """This worker's part of the checkpoint, on the CPU."""
        return {f"ema.{name}": tensor.to("cpu", copy=True) for name, tensor in self.tensors.items()}
