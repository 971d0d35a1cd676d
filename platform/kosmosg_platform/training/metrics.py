"""What a run tells about itself: figures over all workers, metrics.jsonl beside the checkpoints, and MLflow."""

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

from kosmosg_platform.console import echo, read_metrics
from kosmosg_platform.storage import write_text
from kosmosg_platform.training.recipe import TrainRun

_TRACK_SECONDS = 3.0


class Meter:
    """Weighted means of a stage's metrics since the last log line. Nothing waits for the device until `mean`."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}
        self.steps = 0
        self.waited = 0.0
        self.begun = time.monotonic()

    def add(self, metrics: Mapping[str, Tensor], weight: float) -> None:
        """The metrics of one micro-batch, means over `weight` samples or tokens."""
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().float() * weight
            self._weights[name] = self._weights.get(name, 0.0) + weight

    def mean(self) -> dict[str, float]:
        """The means over all workers. Collective; workers may have met different metrics."""
        mine = {name: (float(total), self._weights[name]) for name, total in self._sums.items()}
        everyone: list[dict[str, tuple[float, float]]] = [mine] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        names = list(dict.fromkeys(name for one in everyone for name in one))
        found = {name: [one[name] for one in everyone if name in one] for name in names}
        return {name: sum(s for s, _ in rows) / max(sum(w for _, w in rows), 1e-9) for name, rows in found.items()}


class Recorder:
    """Writes metrics of one run; the first worker has the only one.

    A resumed run takes some steps again: their earlier lines are removed from the file, and MLflow, which forgets
    nothing, is told each step once. When the tracking server does not answer, metrics wait for it in memory and in the
    file; training continues.
    """

    def __init__(self, job: TrainRun, start: int) -> None:
        self._job = job
        kept = [line for line in read_metrics(job.metrics) if line["step"] < start]
        write_text(job.metrics, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = job.metrics.open("a", encoding="utf-8")
        self._tracked = job.run.last_step()
        # What a killed worker had written here but not yet sent.
        late = [line for line in kept if line["step"] > self._tracked]
        self._waiting = [(line["step"], {k: v for k, v in line.items() if k != "step"}) for line in late]
        self._sent = time.monotonic()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of optimizer step `step` (0-based)."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        if step > self._tracked:
            self._waiting.append((step, dict(metrics)))
        if time.monotonic() - self._sent > _TRACK_SECONDS:
            self._send()

    def close(self) -> None:
        self._file.close()
        self._send()

    def _send(self) -> None:
        from mlflow.exceptions import MlflowException

        self._sent = time.monotonic()
        try:
            self._job.run.log_history(self._waiting)
            self._waiting = []
        except (MlflowException, OSError) as error:
            echo(f"tracking at {self._job.run.uri} does not answer, metrics wait in {self._job.metrics}: {error}")


def write_sample_images(job: TrainRun, images: Sequence[tuple[str, Image.Image]], step: int) -> None:
    """Sample images after `step` steps: into the run's folder and into MLflow."""
    for name, image in images:
        job.samples.mkdir(parents=True, exist_ok=True)
        image.save(job.samples / f"{name}-{step:08d}.png")
        job.run.log_image(image, name, step)


def peak_memory_gb() -> float:
    """Most memory this worker has held: of its GPU, or of its process where there is none."""
    if torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def last_metrics(job: TrainRun) -> dict[str, Any]:
    """The newest line of a run's metrics; empty before the first."""
    lines = read_metrics(job.metrics)
    return lines[-1] if lines else {}
