"""Metrics of a run: means over all workers, written to metrics.jsonl beside the checkpoints and to MLflow."""

import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from kosmosg.stages import Stage
from kosmosg_platform.console import read_metrics
from kosmosg_platform.storage import write_text
from kosmosg_platform.tracking.run import LoggedSoFar
from kosmosg_platform.training.recipe import TrainRun


class Meter:
    """Weighted means of a stage's metrics since the last log line. Does not synchronise with the device
    until `mean`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self.steps = 0
        self.skipped = 0
        self.waited = 0.0
        self.tokens = 0.0
        self.begun = time.monotonic()

    def add(self, metrics: Mapping[str, Tensor], weight: float) -> None:
        """Add the metrics of one micro-batch, which are means over `weight` samples or tokens."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float() * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def mean(self) -> dict[str, float]:
        """The means over all workers. Collective; workers may have seen different metrics."""
        mine = {name: (float(total), self._weights[name]) for name, total in self._sums.items()}
        everyone: list[dict[str, tuple[float, float]]] = [mine] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        names = list(dict.fromkeys(name for one in everyone for name in one))
        found = {name: [one[name] for one in everyone if name in one] for name in names}
        return {name: sum(s for s, _ in rows) / max(sum(w for _, w in rows), 1e-9) for name, rows in found.items()}

    def of_workers(self, seconds: float, samples: int) -> dict[str, float]:
        """Rates over all workers, and of data wait and peak memory the worker that has most of it. Collective.

        `samples` is the number of all workers in `seconds`.
        """
        mine = (self.waited / seconds, peak_memory_gb(), self.tokens)
        everyone = [mine] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        waits, memories, tokens = zip(*everyone, strict=True)
        found = {"samples_per_second": samples / seconds, "data_wait": max(waits), "memory_gb": max(memories)}
        if any(tokens):
            found["tokens_per_second"] = sum(tokens) / seconds
        if len(everyone) > 1:
            found |= {"data_wait_rank": float(waits.index(max(waits)))}
            found |= {"memory_rank": float(memories.index(max(memories)))}
        return found


class Recorder:
    """Writes the metrics of one run; only the first worker has one.

    A resumed run repeats some steps: their earlier lines are removed from the file, and each step is logged to MLflow
    only once. Nothing here waits for the tracking server.
    """

    def __init__(self, job: TrainRun, start: int, rolled_back: bool = False) -> None:
        self._run = job.run.as_writer("worker")
        # After a rollback, steps are repeated with other data: MLflow then gets both curves.
        self._logged = LoggedSoFar({}, frozenset()) if rolled_back else self._run.logged()
        kept = [line for line in read_metrics(job.metrics) if line["step"] < start]
        write_text(job.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = job.metrics.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of optimizer step `step` (0-based)."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        self._run.log_metrics(self._logged.new(metrics, step), step)

    def close(self) -> None:
        self._file.close()


def write_sample_images(job: TrainRun, images: Sequence[tuple[str, Image.Image]], step: int) -> None:
    """Sample images after `step` steps: into the run's folder and, once for each step, into MLflow."""
    run = job.run.as_writer("worker")
    for name, image in images:
        job.samples.mkdir(parents=True, exist_ok=True)
        path = job.samples / f"{name}-{step:08d}.png"
        image.save(path)
        if (name, step) not in run.logged().images:
            run.log_image(path, name, step)


def share_of_peak(job: TrainRun, stage: Stage) -> float:
    """The model FLOPs of one sample in those that a device computes in a second; 0 where one of them is unknown.

    Times the samples per second and device, this is the model FLOPs utilisation (MFU).
    """
    flops_of_sample = getattr(job.recipe, "flops_of_sample", None)
    peak = (job.experiment.scale.device_tflops or 0.0) * 1e12
    return float(flops_of_sample(stage)) / peak if peak and flops_of_sample is not None else 0.0


def peak_memory_gb() -> float:
    """Peak memory of this worker: of its GPU, or of its process if there is none."""
    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def last_metrics(job: TrainRun) -> dict[str, Any]:
    """The newest line of a run's metrics; empty before the first one."""
    lines = read_metrics(job.metrics)
    return lines[-1] if lines else {}
