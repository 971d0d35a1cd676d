"""A rehearsal of a training stage at its full number of workers, on one machine and without a GPU.

Nothing of the model is computed. What is real: Ray's placement of the workers on simulated nodes, the order of samples
and every worker's slice of it, the assignment of parameters to the files of a checkpoint, and the messages in which
workers exchange metrics and file entries. What is counted: the least volume of gradients and weights on the network.
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from pydantic import Field

from kosmosg.errors import ConfigError
from kosmosg_platform.cluster.session import ScaleConfig
from kosmosg_platform.config import Section
from kosmosg_platform.planning.flops import StageCost
from kosmosg_platform.training.checkpoints import WrittenShard, assign
from kosmosg_platform.training.engine_config import EngineConfig
from kosmosg_platform.training.lr_schedule import TrainConfig, batch_plan
from kosmosg_platform.training.sampler import MixtureSampler

STATES = 3  # fp32 values of a parameter in a checkpoint: the weight and AdamW's two moments


class RehearseConfig(Section):
    """The simulated cluster of `rehearse`."""

    gpus_per_node: int = Field(default=8, ge=1)
    """GPUs of a node; without GPUs, workers of a node."""
    cpus_per_node: int = Field(default=96, ge=1)
    """CPUs of a node."""
    nodes: int | None = Field(default=None, ge=0, le=64)
    """Nodes; null takes as many as the GPUs need, 0 leaves the placement out."""
    rows: int = Field(default=9_000_000, ge=1)
    """Records of each kind, for kinds without a dataset."""


@dataclass(frozen=True)
class WorkerPlacement:
    """Where Ray puts the workers."""

    nodes: int
    workers_of: tuple[int, ...]
    """Workers of each node that has some, most first."""
    seconds: float
    """From the request until every worker had its place."""


def place(scale: ScaleConfig, config: RehearseConfig) -> WorkerPlacement:
    """Let Ray place the workers on simulated nodes, as Ray Train asks for them.

    Raises ConfigError if they do not fit.
    """
    from ray.util.placement_group import placement_group, placement_group_table

    bundle = {"CPU": float(scale.cpus_per_worker), **({"GPU": 1.0} if scale.use_gpu else {})}
    count = config.nodes or -(-scale.workers // config.gpus_per_node)
    room = min(config.cpus_per_node // scale.cpus_per_worker, config.gpus_per_node)
    if room * count < scale.workers:
        raise ConfigError(
            f"scale.workers: {scale.workers} workers with {bundle} do not fit on {count} nodes of "
            f"{config.cpus_per_node} CPUs and {config.gpus_per_node} GPUs, which hold {room * count}; lower "
            "scale.cpus_per_worker or raise rehearse.nodes"
        )
    with _simulated(count, config):
        began = time.monotonic()
        group = placement_group([bundle] * scale.workers, strategy="PACK")
        if not group.wait(timeout_seconds=60):
            raise ConfigError(f"scale: Ray found no place for {scale.workers} workers with {bundle} within 60 s")
        seconds = time.monotonic() - began
        where: Mapping[int, str] = placement_group_table(group)["bundles_to_node_id"]
    return WorkerPlacement(count, tuple(sorted(Counter(where.values()).values(), reverse=True)), seconds)


@contextmanager
def _simulated(nodes: int, config: RehearseConfig) -> Iterator[None]:
    """A Ray cluster of that many nodes on this machine, each with the CPUs and GPUs that it claims to have."""
    import ray
    from ray.cluster_utils import Cluster

    os.environ |= {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    # The head has no room for workers, as in cluster.yaml. A small object store each: nothing is stored.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **_SMALL})
    try:
        for _ in range(nodes):
            cluster.add_node(wait=False, num_cpus=config.cpus_per_node, num_gpus=config.gpus_per_node, **_SMALL)
        cluster.wait_for_nodes(timeout=300)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


_SMALL = {"object_store_memory": 80 * 2**20}


@dataclass(frozen=True)
class Slices:
    """What the workers read."""

    samples: int
    """Of one worker and step."""
    passes: int
    """Forward passes of one worker and step."""
    steps: tuple[int, ...]
    """The steps that were looked at."""
    epochs: Mapping[str, float]
    """Passes over each source in the whole run."""
    milliseconds: float
    """To work out one worker's slice of one step."""


def slices(train: TrainConfig, workers: int, sizes: Mapping[str, int], weights: Mapping[str, float]) -> Slices:
    """Work out the slices of all workers at the first steps, in the middle and at the end of the run.

    Raises ConfigError if the batch cannot be shared equally, or if the slices are not the batch: each of its samples
    once, in order, and no record twice within an epoch.
    """
    micro, passes = batch_plan(train, workers)
    order = MixtureSampler(sizes, weights, train.seed, train.global_batch)
    steps = tuple(dict.fromkeys([0, min(1, train.steps - 1), train.steps // 2, train.steps - 1]))
    began = time.perf_counter()
    for step in steps:
        parts = [sample for rank in range(workers) for sample in order.step(step, rank, workers)]
        if parts != order.step(step):
            raise ConfigError(f"the slices of {workers} workers at step {step} are not the batch; please report this")
        seen = Counter((sample.source, sample.epoch, sample.index) for sample in parts)
        if max(seen.values()) > 1:
            raise ConfigError(f"a record occurs twice within an epoch at step {step}; please report this")
    took = time.perf_counter() - began
    total = train.steps * train.global_batch
    whole = sum(weights.values())
    epochs = {name: total * weight / whole / sizes[name] for name, weight in weights.items() if weight > 0}
    return Slices(micro * passes, passes, steps, epochs, 1e3 * took / (2 * len(steps) * workers))


@dataclass(frozen=True)
class CheckpointFiles:
    """One checkpoint, and the messages that complete it."""

    files: int
    total: int  # bytes
    largest: int  # bytes
    smallest: int  # bytes
    largest_parameter: str
    manifest_message: int
    """Bytes, about, that every worker receives when the entries of all files are gathered."""


def checkpoint_files(sizes: Mapping[str, int], workers: int, averaged: bool) -> CheckpointFiles:
    """How a checkpoint is spread over the workers, each of which writes a file. `sizes` are values by parameter."""
    names = list(sizes)
    owned = assign([(name, None) for name in names], [sizes[name] for name in names], workers)
    width = 4 * (STATES + averaged)
    loads = [sum(width * sizes[name] for name in own) for own in owned]
    entries = [WrittenShard(f"state-{rank:05d}.safetensors", load, "0" * 64) for rank, load in enumerate(loads)]
    message = sum(len(json.dumps(asdict(entry))) for entry in entries)
    return CheckpointFiles(
        workers, sum(loads), max(loads), min(loads), max(sizes, key=lambda name: sizes[name]), message
    )


@dataclass(frozen=True)
class Traffic:
    """The least that one worker sends over the network."""

    step: float
    """Bytes of gradients and weights, every step."""
    collectives: tuple[str, ...]
    """Which they are."""
    metrics: int
    """Bytes, about, of everybody's metrics that each worker receives, every `train.log_every` steps."""


def traffic(cost: StageCost, train: TrainConfig, workers: int, engine: EngineConfig, names: Sequence[str]) -> Traffic:
    """Volume by ring algorithms, which are the least: a reduction or a gathering moves (N - 1) / N of the values.

    Args:
        cost: weights of the stage.
        train: steps and batches.
        workers: N.
        engine: ZeRO stage and precision.
        names: the metrics of a log line.
    """
    _, passes = batch_plan(train, workers)
    value, share = (4 if engine.precision == "fp32" else 2), (workers - 1) / workers
    one = share * value * cost.trainable
    if engine.zero_stage == 0:
        found = {"reduce gradients": 2 * one}  # to all: reduced, then gathered
    elif engine.zero_stage == 1:
        found = {"reduce gradients": one, "gather updated weights": one}
    else:
        found = {f"reduce gradients, {passes} times": one * passes, "gather updated weights": one}
    if engine.zero_stage == 3:
        weights = share * value * (cost.trainable + cost.frozen)
        found.pop("gather updated weights")
        found[f"gather weights, {2 * passes} times"] = 2 * passes * weights
    message = len(json.dumps(dict.fromkeys(names, (0.123456789, 1024.0)))) * workers
    return Traffic(sum(found.values()), tuple(found), message)
