"""Length, batch size and learning rate of a training run: the section `train`, and the learning rate as a function."""

import math
from collections.abc import Iterable
from typing import Literal

from pydantic import Field, field_validator
from torch.nn import Parameter

from kosmosg.errors import ConfigError
from kosmosg_platform.config import Section


class TrainConfig(Section):
    """One training run. Defaults follow the original where it has them (Kosmos-G runalign.sh, runtrain.sh)."""

    steps: int = Field(default=100, ge=1)
    """Optimizer steps."""
    global_batch: int = Field(default=8, ge=1)
    """Samples per optimizer step, over all workers."""
    micro_batch: int | None = Field(default=None, ge=1)
    """Samples per forward pass of one worker; null takes its whole share of the batch (no gradient accumulation)."""
    seed: int = Field(default=0, ge=0)
    """Seed of weights, sample order, noise and dropout."""
    lr: float = Field(default=1e-3, gt=0)
    """Peak learning rate."""
    lr_multipliers: dict[str, float] = Field(default_factory=dict)
    """Learning rate multipliers for parts of a stage, by parameter name prefix: {model.mllm: 0.1} trains the language
    model at a tenth of the rate, 0 freezes it. The default is 1."""
    warmup: int = Field(default=0, ge=0)
    """Optimizer steps over which the learning rate rises linearly from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate decays after the warm-up."""
    decay_fraction: float = Field(default=1.0, gt=0, le=1)
    """Fraction of `steps`, at the end, over which it decays; with 1 the decay starts right after the warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """AdamW's beta1 and beta2."""
    eps: float = Field(default=1e-6, gt=0)
    """AdamW's epsilon."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay, applied to all parameters as in the original."""
    max_grad_norm: float = Field(default=2.0, ge=0)
    """Gradients are clipped to this global norm; 0 disables clipping."""
    ema: float | None = Field(default=None, gt=0, lt=1)
    """Decay per step of an exponential moving average of the weights, which is then exported; null keeps none."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Optimizer steps between checkpoints; the last step always writes one."""
    log_every: int = Field(default=1, ge=1)
    """Optimizer steps between logged metrics."""
    max_skipped_updates: int = Field(default=5, ge=1)
    """Updates in a row that are skipped because loss or gradients are not finite, before the run goes back to its last
    checkpoint and leaves out the data since then. In fp16 they count once the loss scale is down to 1."""
    max_rollbacks: int = Field(default=3, ge=0)
    """How often the run goes back to the same checkpoint before it ends."""
    validate_every: int = Field(default=500, ge=1)
    """Optimizer steps between measurements of the loss on the `data.validation` samples; the last step measures too."""
    sample_every: int = Field(default=0, ge=0)
    """Optimizer steps between sample images; 0 generates them only once, at the end."""
    max_replaced: float = Field(default=0.001, ge=0, le=1)
    """Share of all samples so far that may be replaced because they cannot be used, such as undecodable images; above
    it the run ends. Up to 10 are always replaced, unless this is 0, which ends the run at the first."""
    keep_checkpoints: int = Field(default=2, ge=1)
    """How many of the newest checkpoints are kept, for when one is damaged."""
    resume_from: str | None = None
    """Run folder or checkpoint of another run to go on from, with other settings of the optimizer, such as a lower lr;
    null starts at step 0. Model, data, seed and global_batch must be the other run's."""
    restart: bool = False
    """Start over even if a run of the same settings is unfinished or finished under `output`; its checkpoints, metrics
    and export are removed first."""

    @field_validator("lr_multipliers")
    @classmethod
    def _multipliers(cls, value: dict[str, float]) -> dict[str, float]:
        for part, multiplier in value.items():
            if not 0 <= multiplier < math.inf:
                raise ValueError(f"the multiplier of {part!r} is {multiplier}; it is 0 or above")
        return {part: float(value[part]) for part in sorted(value)}


def lr_multiplier(train: TrainConfig, name: str) -> float:
    """A parameter's learning rate multiplier: that of the longest matching prefix in `lr_multipliers`."""
    parts = [part for part in train.lr_multipliers if name == part or name.startswith(f"{part}.")]
    return train.lr_multipliers[max(parts, key=len)] if parts else 1.0


def freeze(train: TrainConfig, parameters: Iterable[tuple[str, Parameter]]) -> None:
    """Disable the gradient of everything whose multiplier is 0.

    Raises ConfigError for a part that matches no parameter, which would silently have no effect.
    """
    named = dict(parameters)
    for part in train.lr_multipliers:
        if not any(name == part or name.startswith(f"{part}.") for name in named):
            tops = sorted({".".join(name.split(".")[:2]) for name in named})
            raise ConfigError(
                f"train.lr_multipliers: nothing that is trained begins with {part!r}; there are {', '.join(tops)}"
            )
    frozen = [parameter for name, parameter in named.items() if lr_multiplier(train, name) == 0]
    if len(frozen) == len(named):
        raise ConfigError("train.lr_multipliers: every multiplier is 0, so nothing would be trained")
    for parameter in frozen:
        parameter.requires_grad_(False)


def learning_rate(train: TrainConfig, step: int) -> float:
    """The learning rate of optimizer step `step` (0-based): warm-up, plateau, then decay to 0 at `train.steps`."""
    if step < train.warmup:
        return train.lr * (step + 1) / train.warmup
    if train.schedule == "constant":
        return train.lr
    start = max(train.warmup, round(train.steps * (1 - train.decay_fraction)))
    if step < start:
        return train.lr
    # The last step still has a small learning rate: progress reaches 1 only at `steps`, which is never taken.
    progress = (step - start) / max(1, train.steps - start)
    share = 1 - progress if train.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
    return train.lr * share


def batch_plan(train: TrainConfig, workers: int, wanted: int | None = None) -> tuple[int, int]:
    """(samples per forward pass, passes per step) of each worker, so that workers x micro x passes = global batch.

    `wanted` is `scale.workers` where fewer may be running: each then takes as many samples at a time as one of all of
    them would, since more may not fit into its memory. Raises ConfigError if the batch is not divisible.
    """
    share, rest = divmod(train.global_batch, workers)
    if rest or not share:
        raise ConfigError(
            f"train.global_batch: {train.global_batch} samples cannot be shared equally by {workers} workers; "
            f"choose a multiple of {workers} or another scale.workers"
        )
    micro = train.micro_batch or train.global_batch // (wanted or workers)
    passes, rest = divmod(share, micro)
    if rest or not passes:
        raise ConfigError(
            f"train.micro_batch: {micro} does not divide the {share} samples of each worker "
            f"(train.global_batch {train.global_batch} / scale.workers {workers}); choose a divisor of {share}"
        )
    return micro, passes


def worker_counts(train: TrainConfig, workers: int, least: int | None) -> list[int]:
    """The numbers of workers, from `workers` down to `least` (null: no fewer), that can share the batch."""
    counts = [workers]
    for fewer in range(workers - 1, (least or workers) - 1, -1):
        try:
            batch_plan(train, fewer, workers)
        except ConfigError:
            continue
        counts.append(fewer)
    return counts
