"""Where a run executes: the section `scale`, and the Ray cluster that all jobs of a process share.

Facts about Ray 2.60 that this file relies on:
- `ray.init()` without an address joins any cluster already running on the machine; only `local` starts one.
- A first plain `ray.init()` switches token authentication on for everything that this user starts later. The mode is
  therefore always set explicitly: none for a cluster that listens on loopback only, tokens for every other.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from pydantic import Field

from kosmosg.errors import ConfigError
from kosmosg_platform.cluster import reaper, workspace
from kosmosg_platform.cluster.resources import WorkerDemand
from kosmosg_platform.config import Section


class ScaleConfig(Section):
    """Number of workers and the resources of each."""

    workers: int = Field(default=1, ge=1)
    """Training processes; one per GPU if GPUs are used."""
    use_gpu: bool = False
    """Give every worker one GPU."""
    device_tflops: float | None = Field(default=None, gt=0)
    """Peak TFLOP/s of one worker's device in the run's precision, against which the metric `mfu` is measured, such
    as 989 for an H100 in bf16; null logs no `mfu`."""
    cpus_per_worker: int = Field(default=1, ge=1)
    """CPU cores, and threads, of each worker."""
    dataloader_workers: int = Field(default=0, ge=0)
    """Data loader processes per worker that read and decode records; 0 loads in the training process."""
    address: str | None = None
    """Ray cluster to join (`auto`, `ray://host:port`); null uses RAY_ADDRESS if it is set, or else starts one here."""
    max_failures: int = Field(default=2, ge=-1)
    """How many times, since its newest checkpoint, a training run replaces workers that died or hung and goes on from
    there; for other jobs since their start. -1 means always."""
    min_workers: int | None = Field(default=None, ge=1)
    """A training run that finds no room for all workers, because a node was lost, goes on with as many as there is room
    for, at least this many, and takes more at a checkpoint once there is room again; null waits for all of them."""
    max_wait_seconds: float = Field(default=3600, ge=0)
    """How long a training run waits for room for its workers before it ends."""
    stall_seconds: float = Field(default=60, ge=0)
    """How long a worker may not answer, or none of them get on in a step, before their stacks are saved and they are
    started again; 0 watches nothing."""
    long_stall_seconds: float = Field(default=1800, ge=0)
    """The same for what takes longer than a step: the start, the first step, checkpoints, validation, sample images."""
    store_retry_s: float = Field(default=1800, ge=0)
    """Seconds for which an object store that has ceased to answer is asked again before a run ends; training goes on
    meanwhile."""
    stop_seconds: float = Field(default=25, ge=0)
    """Time that SIGTERM leaves the workers of a training run to save a checkpoint; less than the scheduler leaves the
    program (Kubernetes and Slurm: 30 s, unless they are told otherwise)."""

    def training_workers(self) -> WorkerDemand:
        """What training takes from a cluster at least."""
        return WorkerDemand(self.min_workers or self.workers, self.cpus_per_worker, float(self.use_gpu))


class Scaled(Protocol):
    """Anything with a section `scale`, such as an experiment."""

    @property
    def scale(self) -> ScaleConfig: ...


@contextmanager
def connect(experiment: Scaled) -> Iterator[None]:
    """Connect to a Ray cluster for the duration of the block.

    Inside another `connect` (or wherever Ray is already up) the same cluster is used and left running: the jobs of a
    demo share one. Raises ConfigError if the cluster to join does not respond.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    address = experiment.scale.address or os.environ.get("RAY_ADDRESS")
    if not address:
        with local(experiment.scale):
            yield
        return
    _join(address)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def local(scale: ScaleConfig) -> Iterator[None]:
    """A cluster on this machine only, reachable from this machine only, for the duration of the block."""
    import ray

    settings = {
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    # Workers are children of this process: what it can import, they can.
    os.environ["PYTHONPATH"] = workspace.environment(workspace.find())["PYTHONPATH"]
    needed = scale.workers * scale.cpus_per_worker
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, needed),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        configure_logging=True,
        _node_ip_address="127.0.0.1",
    )
    with reaper.watch():
        try:
            yield
        finally:
            ray.shutdown()


def _join(address: str) -> None:
    import ray

    from kosmosg_platform.cluster.submit import runtime_env

    os.environ.setdefault("RAY_AUTH_MODE", "token")
    # A submitted job already runs in an uploaded copy of the checkout, which its workers inherit.
    submitted = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    try:
        ray.init(
            address=address,
            runtime_env=None if submitted else runtime_env(workspace.find()),
            logging_level=logging.WARNING,
        )
    except ConnectionError as error:
        raise ConfigError(f"scale.address: no Ray cluster answers at {address} ({error})") from None
