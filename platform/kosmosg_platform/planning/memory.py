"""What a worker's memory holds at its fullest: weights, optimizer, gradients, DeepSpeed's buffers, activations.

Which tensors DeepSpeed 0.19.8 keeps, and when, was read off the allocator in runs of two workers, for each ZeRO stage,
in fp32 and bf16, with and without accumulation. A step has three moments that can be the fullest: the end of the
forward pass, the end of the backward pass, the update.
"""

from dataclasses import dataclass

from kosmosg_platform.planning.flops import StageCost
from kosmosg_platform.training.engine_config import BUCKET, EngineConfig

GATHERED = 1_000_000_000  # DeepSpeed's default: values of weights that ZeRO-3 holds gathered at once


@dataclass(frozen=True)
class WorkerMemory:
    """Bytes of one worker, by what they are of."""

    weights: float
    optimizer: float
    """Moments, and the fp32 weights that are really moved where they are not the weights themselves."""
    gradients: float
    """Held from one micro-batch to the next."""
    activations: float
    """At the end of the forward pass, with the weights that ZeRO-3 has gathered for it."""
    reduction: float
    """Gradients of the last micro-batch, and the buckets in which they are reduced, at the end of the backward pass."""
    update: float
    """Copies of gradients and temporaries while the optimizer updates."""

    @property
    def peak(self) -> float:
        """The most of the three moments of a step."""
        return self.weights + self.optimizer + self.gradients + max(self.activations, self.reduction, self.update)


def worker_memory(cost: StageCost, micro: int, passes: int, workers: int, engine: EngineConfig) -> WorkerMemory:
    """The memory of one of `workers`, which takes `passes` micro-batches of `micro` samples per step."""
    trained, zero = float(cost.trainable), engine.zero_stage
    full = engine.precision == "fp32"
    value = 4 if full else 2
    part = 1 / workers
    several = passes > 1
    kept = value * micro * (cost.kept_checkpointed if engine.checkpoint_activations else cost.kept)
    bucket = float(value * min(BUCKET, trained))
    weights: float = value * (trained + cost.frozen)
    if zero == 0:
        # The unfused optimizer of low precision keeps fp32 weights, and makes fp32 gradients to clip them.
        optimizer = (8.0 if full else 12.0) * trained
        gradients = float((1 if full else 2) * value * trained * several)
        reduction = (0 if several else value * trained) + (bucket if workers > 1 else 0)
        update = (0 if several else value * trained) if full else (4.5 if several else 8.5) * trained
        return WorkerMemory(weights, optimizer, gradients, kept, reduction, update)
    # A flat copy of its share in fp32, also where the weights are fp32 already, and its two moments.
    optimizer = 0.0 if engine.offload_optimizer else 12.0 * trained * part
    reduction = float(value * trained * part + 2 * bucket)
    # The reduced share, its flat copy, that in fp32, and a temporary of AdamW: as much in either precision.
    update = 12.0 * trained * part
    if zero == 1 and several:  # every worker accumulates all gradients
        gradients = (12.0 if full else 6.0) * trained
        update = update if full else 2.0 * trained + 8.0 * trained * part
        reduction = 0.0
    elif zero == 2:
        gradients = 4.0 * trained * part * several
    else:
        gradients = 0.0
    if zero == 3:
        gradients = value * trained * part + 2 * bucket  # buffers that exist from the start
        weights, reduction = weights * part, 0.0
        kept += value * min(GATHERED, trained + cost.frozen)
    return WorkerMemory(weights, optimizer, gradients, kept, reduction, update)
