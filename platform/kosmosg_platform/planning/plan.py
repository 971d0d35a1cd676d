"""Estimates before running: does it fit, how long does it take, how much disk does it need, and what is rejected.

Weights and FLOPs are exact counts; everything else is estimated from assumptions that are printed with the result.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from kosmosg.errors import ConfigError
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.planning.flops import StageCost
from kosmosg_platform.planning.memory import worker_memory
from kosmosg_platform.planning.rehearsal import traffic
from kosmosg_platform.training.engine_config import EngineConfig
from kosmosg_platform.training.lr_schedule import TrainConfig, batch_plan

USED = 0.35
"""Share of a device's peak that training reaches (model FLOPs utilisation); 0.3 to 0.45 is usual at these sizes."""

OVERHEAD = 2 * 2**30
"""Bytes that CUDA, NCCL and fragmentation take on a GPU."""

CHECKPOINTS = 2
"""Checkpoints that exist at once."""


@dataclass(frozen=True)
class Device:
    """A kind of accelerator; peak is dense FLOPs per second at the stage's precision."""

    name: str
    memory: float  # bytes; 0 means it is not the limit
    peak: Mapping[str, float]  # by precision; one that is absent does not work there


# Vendors' data sheets, dense; fp32 on Ampere and later is TF32.
GPUS = (
    Device("V100 32 GB", 32e9, {"fp16": 125e12, "fp32": 15.7e12}),
    Device("A100 80 GB", 80e9, {"bf16": 312e12, "fp16": 312e12, "fp32": 156e12}),
    Device("H100 80 GB", 80e9, {"bf16": 989e12, "fp16": 989e12, "fp32": 494e12}),
    Device("H200 141 GB", 141e9, {"bf16": 989e12, "fp16": 989e12, "fp32": 494e12}),
)
# One core of a server processor, as a matrix product reaches it; USED comes on top.
CPU = Device("CPU core", 0, {"fp32": 100e9, "bf16": 100e9, "fp16": 100e9})


@dataclass(frozen=True)
class DevicePlan:
    """One stage on one kind of device."""

    device: str
    memory: float  # bytes per worker
    days: float | None  # None when it is refused
    refused: tuple[str, ...]


@dataclass(frozen=True)
class StagePlan:
    """One stage."""

    cost: StageCost
    samples: int
    flops: float  # of the whole stage
    disk: float  # bytes: checkpoints, averaged weights and export
    checkpoint: float  # bytes of one checkpoint
    checkpoints: int  # written in the whole run
    sent: float  # bytes that one worker sends per step, at least
    host: float  # bytes of one worker in the memory of its machine, beside Python and its libraries
    refused: tuple[str, ...]  # on every device
    rows: tuple[DevicePlan, ...]

    @property
    def possible(self) -> bool:
        """Some device takes it as it is."""
        return not self.refused and any(not row.refused for row in self.rows)


def plan_stage(cost: StageCost, train: TrainConfig, scale: ScaleConfig, engine: EngineConfig) -> StagePlan:
    """The plan of a stage on every kind of device that its preset is meant for."""
    samples = train.steps * train.global_batch
    per_sample = cost.flops + (cost.recomputed if engine.checkpoint_activations else 0)
    flops = samples * per_sample
    # Weights and two moments in fp32 for each checkpoint, the average if there is one; weights once more as export.
    state = cost.trainable * 4 * (3 + (train.ema is not None))
    disk = CHECKPOINTS * state + 4 * (cost.trainable + cost.frozen)
    refused = tuple(_refusals(train, scale, engine))
    devices = GPUS if scale.use_gpu else (CPU,)
    rows = tuple(_row(device, cost, flops, train, scale, engine) for device in devices)
    # A stage is built in fp32; later a checkpoint's share is copied there, and offloaded optimizer states stay.
    offloaded = 12 * cost.trainable / scale.workers if engine.offload_optimizer else 0
    host = max(4.0 * (cost.trainable + cost.frozen), offloaded + state / scale.workers)
    written = -(-train.steps // train.checkpoint_every)
    sent = 0.0 if refused else traffic(cost, train, scale.workers, engine, ()).step
    return StagePlan(cost, samples, flops, disk, state, written, sent, host, refused, rows)


def _row(
    device: Device, cost: StageCost, flops: float, train: TrainConfig, scale: ScaleConfig, engine: EngineConfig
) -> DevicePlan:
    refused = []
    if engine.precision not in device.peak:
        others = [name for name in ("bf16", "fp16", "fp32") if name in device.peak]
        refused.append(f"has no {engine.precision}; use engine.precision={others[0]}")
    micro = train.micro_batch or max(1, train.global_batch // scale.workers)
    passes = max(1, train.global_batch // scale.workers // micro)
    memory = worker_memory(cost, micro, passes, scale.workers, engine).peak + (OVERHEAD if scale.use_gpu else 0)
    if device.memory and memory > device.memory:
        remedy = _smaller(cost, micro, passes, scale.workers, engine)
        refused.append(f"needs {memory / 1e9:.0f} GB of {device.memory / 1e9:.0f} GB; {remedy}")
    units = scale.workers * (1 if scale.use_gpu else scale.cpus_per_worker)
    days = None if refused else flops / (units * device.peak[engine.precision] * USED) / 86400
    return DevicePlan(device.name, memory, days, tuple(refused))


def _refusals(train: TrainConfig, scale: ScaleConfig, engine: EngineConfig) -> Iterator[str]:
    """Settings that are invalid on every device."""
    try:
        batch_plan(train, scale.workers)
    except ConfigError as error:
        yield str(error)
    if engine.offload_optimizer and not engine.zero_stage:
        yield "engine.offload_optimizer: needs engine.zero_stage 1 to 3, not 0"
    if engine.precision == "fp16" and not scale.use_gpu:
        yield "engine.precision: fp16 needs a GPU; use bf16 or fp32, or scale.use_gpu=true"


def _smaller(cost: StageCost, micro: int, passes: int, workers: int, engine: EngineConfig) -> str:
    """The change of settings that would save most memory."""
    ways = [
        (
            worker_memory(cost, max(1, micro // 2), passes, workers, engine).peak,
            f"train.micro_batch={max(1, micro // 2)}",
        )
    ]
    if not engine.checkpoint_activations:
        changed = engine.model_copy(update={"checkpoint_activations": True})
        ways.append((worker_memory(cost, micro, passes, workers, changed).peak, "engine.checkpoint_activations=true"))
    if not engine.offload_optimizer and engine.zero_stage:
        changed = engine.model_copy(update={"offload_optimizer": True})
        ways.append((worker_memory(cost, micro, passes, workers, changed).peak, "engine.offload_optimizer=true"))
    if engine.zero_stage < 3 and workers > 1:
        changed = engine.model_copy(update={"zero_stage": engine.zero_stage + 1})
        ways.append(
            (worker_memory(cost, micro, passes, workers, changed).peak, f"engine.zero_stage={engine.zero_stage + 1}")
        )
    least, way = min(ways)
    return f"{way} brings it to {least / 1e9:.0f} GB"


def render(
    plans: Sequence[StagePlan], scale: ScaleConfig, engine: EngineConfig, dollars_per_gpu_hour: float = 0.0
) -> Iterator[str]:
    """The plan as text."""

    def cost_of(days: float) -> str:
        dollars = days * 24 * scale.workers * dollars_per_gpu_hour
        return f"  {dollars:,.2f} dollars" if dollars else ""

    for plan in plans:
        cost = plan.cost
        yield (
            f"{cost.stage}: {_count(cost.trainable)} trainable and {_count(cost.frozen)} frozen parameters, "
            f"{_count(plan.samples)} samples, {plan.flops:.2g} FLOPs ({cost.flops / 1e12:.3g} TFLOP a sample), "
            f"{plan.disk / 1e9:.3g} GB on disk"
        )
        yield (
            f"  network: at least {plan.sent / 1e9:.3g} GB per worker and step; checkpoints: {plan.checkpoints:,} of "
            f"{plan.checkpoint / 1e9:.3g} GB, {plan.checkpoints * plan.checkpoint / 1e9:.3g} GB written in the run; "
            f"memory of the machine: {plan.host / 1e9:.3g} GB per worker"
        )
        for reason in plan.refused:
            yield f"  REFUSED: {reason}"
        for row in () if plan.refused else plan.rows:
            if row.days is None:
                yield f"  {row.device:<12} REFUSED: {'; '.join(row.refused)}"
            else:
                time = duration(row.days) + cost_of(row.days)
                yield f"  {row.device:<12} {row.memory / 1e9:6.3g} GB per worker  {time}"
    unit = ("GPU" if scale.use_gpu else "worker") + ("s" if scale.workers > 1 else "")
    yield (
        f"for {scale.workers} {unit}, {engine.precision}, ZeRO-{engine.zero_stage}; "
        f"devices at {USED:.0%} of their peak; memory is an estimate"
    )
    if scale.use_gpu:
        yield "V100 needs a torch build for CUDA 12.6: --index-url https://download.pytorch.org/whl/cu126"


def _count(number: int) -> str:
    for size, unit in ((10**9, "billion"), (10**6, "million"), (10**3, "thousand")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def duration(days: float) -> str:
    """`3.5 days`, `7.2 hours`, `0.4 minutes`."""
    if days >= 1:
        return f"{days:.1f} days"
    hours = days * 24
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(hours * 60, 0.1):.1f} minutes"
