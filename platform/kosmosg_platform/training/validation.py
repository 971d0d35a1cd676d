"""The loss on the records that a run holds out, with dropout off: the same samples, templates and noise every time."""

from collections.abc import Iterator
from typing import Any

import torch

from kosmosg_platform.training.engine import Engine
from kosmosg_platform.training.metrics import Meter
from kosmosg_platform.training.recipe import TrainRun
from kosmosg_platform.training.sampler import SampleIndex, mix

_SEED = 0x56414C  # of everything random about a validation sample; no seed of the run affects it


def validate(job: TrainRun, engine: Engine, micro: int, rank: int, world_size: int) -> dict[str, float]:
    """Means of the stage's metrics over the held-out samples, named `validation/...`; empty without any. Collective.

    Micro-batches are the same for any number of workers, which take them in turn. Where they do not come out even, some
    workers run one more that does not count, because ZeRO-3 needs all of them for every pass.
    """
    batches = _micro_batches(job.held_out, micro)
    if not batches:
        return {}
    sources, collate, meter = job.recipe.datasets(), job.recipe.build_collate(), Meter()
    stage: Any = engine.module
    stage.eval()
    with torch.no_grad():
        for first in range(0, len(batches), world_size):
            place = first + rank
            samples = batches[min(place, len(batches) - 1)]
            batch = collate([(sample, sources[sample.source][sample.index]) for sample in samples])
            weight = float(batch.pop("weight")) if "weight" in batch else float(len(samples))
            out = engine(batch)
            if place < len(batches):
                meter.add(out.metrics, weight)
    stage.train()
    return {f"validation/{name}": value for name, value in meter.mean().items()}


def _micro_batches(held_out: Any, micro: int) -> list[list[SampleIndex]]:
    samples = list(_samples(held_out))
    return [samples[first : first + micro] for first in range(0, len(samples), micro)]


def _samples(held_out: Any) -> Iterator[SampleIndex]:
    for name, indices in held_out.items():
        for index in indices:
            yield SampleIndex(name, index, 0, mix(_SEED, index, *name.encode()) >> 1)
