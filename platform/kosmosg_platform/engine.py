"""How the optimizer works on one or many devices: the section `engine`, and DeepSpeed behind it."""

from typing import Literal

from pydantic import Field

from kosmosg_platform.config import Section


class EngineConfig(Section):
    """DeepSpeed's part of a run."""

    zero_stage: int = Field(default=1, ge=0, le=3)
    """What is sharded over the workers: 0 nothing, 1 optimizer state, 2 and gradients, 3 and parameters."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward and backward pass; the optimizer always keeps fp32 weights. fp16 needs a GPU (V100)."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in CPU memory (zero_stage 1 to 3)."""
