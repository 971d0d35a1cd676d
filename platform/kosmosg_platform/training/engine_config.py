"""The section `engine`: what DeepSpeed shards, in which precision it computes, and its configuration."""

from typing import Any, Literal

from pydantic import Field

from kosmosg.errors import ConfigError
from kosmosg_platform.config import Section
from kosmosg_platform.training.lr_schedule import TrainConfig

BUCKET = 500_000_000
"""DeepSpeed's default: values of gradients that are reduced together."""


class EngineConfig(Section):
    """Settings of DeepSpeed."""

    zero_stage: int = Field(default=1, ge=0, le=3)
    """What is sharded over the workers: 0 nothing, 1 optimizer states, 2 also gradients, 3 also parameters."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Precision of the forward and backward pass; the optimizer always keeps fp32 weights. fp16 (V100) needs a GPU."""
    offload_optimizer: bool = False
    """Keep the optimizer states in CPU memory (zero_stage 1 to 3)."""
    checkpoint_activations: bool = False
    """Recompute activations in the backward pass instead of keeping them: less memory, about a third more time."""
    loss_scale: int = Field(default=16, ge=1, le=32)
    """Exponent (base 2) of the initial loss scale (fp16 only; the original starts at 4 = 2^2)."""
    loss_scale_window: int = Field(default=256, ge=1)
    """Steps without overflow before the loss scale doubles (fp16 only; the default is the original's)."""


def deepspeed_config(
    train: TrainConfig,
    config: EngineConfig,
    micro_batch: int,
    passes: int,
    world_size: int,
    trained: int,
    on_gpu: bool = False,
) -> dict[str, Any]:
    """The configuration for DeepSpeed, for a stage of `trained` values; everything else keeps its default."""
    # Its buffer for gradients has room for half a billion values: a gigabyte that a smaller stage never fills.
    zero: dict[str, Any] = {"stage": config.zero_stage, "reduce_bucket_size": max(1, min(BUCKET, trained))}
    if config.zero_stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = False
    if config.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": on_gpu}
    settings: dict[str, Any] = {
        "train_batch_size": micro_batch * passes * world_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": passes,
        # ZeRO-0 in fp32 is clipped by `Engine`, which also checks the norm.
        "gradient_clipping": train.max_grad_norm if config.zero_stage or config.precision != "fp32" else 0.0,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        # DeepSpeed's own CPU Adam would be compiled on first use; torch's computes the same.
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 1 << 31,
        "wall_clock_breakdown": False,
    }
    if config.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        if passes > 1 and config.zero_stage > 0:
            # Summing many micro-batches in bf16 loses small contributions. (ZeRO-0 offers no alternative.)
            settings["data_types"] = {"grad_accum_dtype": "fp32"}
    if config.precision == "fp16":
        settings["fp16"] = {
            "enabled": True,
            "loss_scale": 0,
            "initial_scale_power": config.loss_scale,
            "loss_scale_window": config.loss_scale_window,
            "hysteresis": 1,
        }
    return settings


def check(config: EngineConfig, on_gpu: bool) -> None:
    """Reject what cannot run, before anything is started. Raises ConfigError."""
    if config.offload_optimizer and config.zero_stage == 0:
        raise ConfigError("engine.offload_optimizer: needs engine.zero_stage 1, 2 or 3, not 0")
    if config.precision == "fp16" and not on_gpu:
        raise ConfigError("engine.precision: fp16 needs a GPU; use fp32 or bf16 on a CPU")
